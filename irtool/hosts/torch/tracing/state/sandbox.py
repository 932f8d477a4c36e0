"""A user's module while its code runs on our behalf: what `forward` does to it is taken back, and told."""

from __future__ import annotations

import dis
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from irtool.hosts.torch.modules import modules_by_path
from irtool.hosts.torch.tracing.state.flags import Flag
from irtool.hosts.torch.tracing.state.surroundings import Surroundings, content_of, contents, holds, refill, same

_INTERNAL = frozenset(vars(nn.Module()))
"""Attributes of every module; of these the slots below and `training` are compared."""
_SLOTS = ("_parameters", "_buffers", "_modules")


@dataclass
class TraceNotes:
    """Behaviour of the model that its graph cannot hold, in the order in which it was seen.

    Attributes:
        asked: modules that decide by `self.training`.
        ungraded: nodes made where gradients were off.
        cast: nodes made under autocast.
        written: attributes and buffers that forward sets.
        made: of the attributes, layers and parameters that were not there before.
        begun: of the buffers, those that were written in place while tracing: what the graph holds of that may lack its beginning.
        recorded: buffers by identity whose every use is recorded, and their names.
        hooked: modules whose forward hooks were traced through.
        reached: containers that these hooks may fill, and what was in them.
        hooked_back: modules that are traced into and have hooks on their gradients.
        backwards: classes of functions whose own backward the graph lacks.
        sized: names of nodes whose value forward made a plain number of, and the line.
        moded: modules that forward puts into a mode.
        before: inputs of other sizes that the model runs on first, so that what it keeps for a size is of another one.
        branches: those of them that forward decided by.
        forgotten: whether writes into buffers were left out, so that the numbers may differ from the model's.
        following_modes: of those that decide, the ones whose decision became a module that follows the mode.
    """

    asked: dict[str, None] = field(default_factory=dict)
    ungraded: dict[str, None] = field(default_factory=dict)
    cast: dict[str, None] = field(default_factory=dict)
    written: dict[str, None] = field(default_factory=dict)
    made: dict[str, None] = field(default_factory=dict)
    begun: dict[str, None] = field(default_factory=dict)
    recorded: dict[int, str] = field(default_factory=dict)
    hooked: dict[str, None] = field(default_factory=dict)
    reached: list[tuple[Any, Any]] = field(default_factory=list)
    hooked_back: dict[str, None] = field(default_factory=dict)
    backwards: dict[str, None] = field(default_factory=dict)
    following_modes: set[str] = field(default_factory=set)
    sized: dict[str, str] = field(default_factory=dict)
    before: tuple[Any, ...] | None = None
    branches: dict[str, None] = field(default_factory=dict)
    moded: dict[str, None] = field(default_factory=dict)
    forgotten: bool = False

    def again(self) -> TraceNotes:
        """For another attempt at the same model. Who decides by `training` is known from all of them: not every tracer can tell."""
        return TraceNotes(asked=dict(self.asked), before=self.before)

    def notes(self, model: nn.Module) -> tuple[str, ...]:
        """A line for people on each kind."""
        own = [path or type(model).__name__ for path, module in modules_by_path(model).items() if type(module).train is not nn.Module.train]
        said = (
            ("decide by self.training: traced as in this mode, what they do in the other is not in the graph", [p for p in self.asked if p not in self.following_modes]),
            ("have a train() of their own, which the graph's does not call", own),
            ("computed under torch.no_grad(): in the graph gradients flow through", self.ungraded),
            ("computed under autocast: in the graph they have the type of their inputs", self.cast),
            ("set by forward: the graph does not", self.written),
            ("put into eval or train mode by forward: in the graph they have the mode of the whole", self.moded),
            ("have forward hooks: what they return is in the graph, which does not call them", self.hooked),
            ("have backward hooks, which the graph does not call", self.hooked_back),
            ("have a backward of their own (torch.autograd.Function), which is not in the graph", self.backwards),
        )  # fmt: skip
        return tuple(f"{_listed(list(names))} {what}" for what, names in said if names)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@contextmanager
def untouched(model: nn.Module, asides: TraceNotes, *, flags: bool) -> Iterator[None]:
    """Put attributes, sub-modules and buffers back; with `flags`, `training` of the user's classes tells who decides by it."""
    tree = modules_by_path(model)
    held, numbers, around = {path: _Held(module) for path, module in tree.items()}, _Numbers(model), Surroundings(tree.values())
    graded = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    own = {path: module for path, module in tree.items() if not type(module).__module__.startswith("torch.nn")} if flags else {}
    plain = {kind: _asks_identity(kind) for kind in set(map(type, own.values()))}
    for path, module in own.items():
        name = path or type(module).__name__
        if plain[type(module)]:
            asides.asked.setdefault(name)
        elif "training" in module.__dict__:  # not so of a compiled module, which answers with another one's
            module.__dict__["training"] = Flag(module.training, lambda name=name: asides.asked.setdefault(name))  # type: ignore[misc]
    try:
        with _told_of_modes(tree, asides) if flags else nullcontext():
            yield
    finally:
        changed = {id(tensor) for tensor in numbers.put_back()}
        for value, content in reversed(asides.reached):  # what the first of several hooks found is put back last
            if not same(content_of(value), content):
                refill(value, content)
        for path, module in tree.items():
            begun = [key for key, held_now in module._buffers.items() if id(held_now) in changed]
            written = held[path].put_back(module)
            for names, told in ((begun, asides.begun), ((*written, *begun), asides.written), (held[path].made, asides.made)):
                for name in names:
                    told.setdefault(f"{path}.{name}" if path else name)
        around.put_back()
        for parameter, flag in graded:
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)


@contextmanager
def _told_of_modes(tree: Mapping[str, nn.Module], asides: TraceNotes) -> Iterator[None]:
    """Note the modules whose `train()` or `eval()` is called meanwhile: a batch norm that forward itself freezes."""
    names, original = {id(module): path or type(module).__name__ for path, module in tree.items()}, nn.Module.train

    def train(self: nn.Module, mode: bool = True) -> nn.Module:
        if id(self) in names:
            asides.moded.setdefault(names[id(self)])
        return original(self, mode)

    nn.Module.train = train  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.train = original  # type: ignore[method-assign]


def _asks_identity(kind: type) -> bool:
    """Whether a method says `self.training is False` or the like: nothing that stands for a flag is the flag itself."""
    codes = [function.__code__ for base in kind.__mro__ if not base.__module__.startswith("torch.nn")
             for function in vars(base).values() if isinstance(function, FunctionType) and "training" in function.__code__.co_names]  # fmt: skip
    for code in codes:
        steps = list(dis.get_instructions(code))
        for number, step in enumerate(steps):
            if step.opname == "IS_OP" and any(before.argval == "training" for before in steps[max(0, number - 3) : number]):
                return True
    return False


class _Held:
    """State of a module before it runs: its attributes, and the contents of its own containers."""

    def __init__(self, module: nn.Module) -> None:
        self.attributes = dict(module.__dict__)
        self.ids = _ids(module)
        self.slots = {slot: dict(module.__dict__[slot]) for slot in _SLOTS}
        self.transient = set(module._non_persistent_buffers_set)
        self.made: list[str] = []
        self.contents: dict[str, list[tuple[Any, Any]]] = {}
        if len(self.attributes) > len(_INTERNAL):
            for key, value in self.attributes.items():
                if key not in _INTERNAL and holds(value):
                    self.contents[key] = contents(value)

    def put_back(self, module: nn.Module) -> list[str]:
        """Undo; the names of what had changed."""
        now, before = module.__dict__, self.attributes
        if isinstance(now.get("training"), Flag):
            now["training"] = before["training"]
        if not self.contents and _ids(module) == self.ids and module._non_persistent_buffers_set == self.transient:
            return []  # the usual case, seen at once
        changed = [key for key in {**before, **now} if not alike(now.get(key), before.get(key))]
        for key, found in self.contents.items():
            if [refill(value, content) for value, content in found if not same(content_of(value), content)]:
                changed.append(key)
        now.clear()
        now.update(before)
        for slot, held in self.slots.items():
            table = now[slot]
            self.made += [key for key in table if slot != "_buffers" and key not in held and not key.startswith("_")]
            if table.keys() != held.keys() or any(table[key] is not held[key] for key in held):
                changed += [key for key in {**held, **table} if table.get(key) is not held.get(key)]
                table.clear()
                table.update(held)
        module._non_persistent_buffers_set.clear()
        module._non_persistent_buffers_set.update(self.transient)
        return [key for key in dict.fromkeys(changed) if not key.startswith("_tensor_constant")]  # those are the tracer's own


def _ids(module: nn.Module) -> list[list[int]]:
    """Return the identities of the objects that a module holds, in order: equal ones show at once that nothing was exchanged."""
    held = module.__dict__
    return [list(map(id, table.values())) for table in (held, *(held[slot] for slot in _SLOTS))]


_PLAIN = (int, float, str, type(None))


def alike(now: Any, before: Any) -> bool:
    """Tell whether two are the same object, or equal plain data: torch.export sets sizes anew. Nothing else is asked whether it is equal."""
    if now is before or type(now) is not type(before):
        return now is before
    if isinstance(now, (tuple, list)):
        return len(now) == len(before) and all(map(alike, now, before))
    if isinstance(now, dict):
        return now.keys() == before.keys() and all(alike(now[key], before[key]) for key in now)
    return isinstance(now, _PLAIN) and bool(now == before)


class _Numbers:
    """Copies of a model's buffers, in one tensor for each type: one by one they would take longer.

    Versions alone do not tell what was written: torch's batch norm counts none when it updates its statistics.
    """

    def __init__(self, model: nn.Module) -> None:
        self.kinds: dict[tuple[Any, Any], list[Tensor]] = {}
        for buffer in model.buffers():
            if not nn.parameter.is_lazy(buffer) and buffer.layout is torch.strided and not buffer.is_inference():  # those cannot be written
                self.kinds.setdefault((buffer.dtype, buffer.device), []).append(buffer)
        self.versions = {kind: [_version(buffer) for buffer in buffers] for kind, buffers in self.kinds.items()}
        self.copies = {kind: torch.cat([buffer.detach().reshape(-1) for buffer in buffers]) for kind, buffers in self.kinds.items()}

    def put_back(self) -> list[Tensor]:
        """Undo; the buffers that were written."""
        found = []
        for kind, buffers in self.kinds.items():
            now = torch.cat([buffer.detach().reshape(-1) for buffer in buffers])
            written = [_version(buffer) for buffer in buffers] != self.versions[kind]
            if not written and (now.is_meta or torch.equal(now, self.copies[kind])):
                continue
            parts = self.copies[kind].split([buffer.numel() for buffer in buffers])
            for buffer, version, part in zip(buffers, self.versions[kind], parts, strict=True):
                if buffer.numel() != part.numel():
                    continue
                if _version(buffer) != version or not (buffer.is_meta or torch.equal(buffer.reshape(-1), part)):
                    found.append(buffer)
                    with torch.inference_mode(buffer.is_inference()), torch.no_grad():
                        buffer.copy_(part.view(buffer.shape))
        return found


def _version(tensor: Tensor) -> int:
    """Count the writes into a tensor; torch does not count them for those made in inference mode."""
    return 0 if tensor.is_inference() else tensor._version
