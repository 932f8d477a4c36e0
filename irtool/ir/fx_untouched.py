"""A user's module while it is traced: what `forward` does to it is taken back, and told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from irtool.ir.fx_module import modules_by_path
from irtool.ir.fx_proxy import Flag

_OWN = frozenset({"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"})


@dataclass
class Asides:
    """What a program does that its graph cannot hold, in the order in which it was seen.

    Attributes:
        asked: modules that decide by `self.training`.
        ungraded: nodes made where gradients were off.
        cast: nodes made under autocast.
        written: attributes and buffers that forward sets.
        mended: of these, the ones whose decision became a module that follows the mode.
    """

    asked: dict[str, None] = field(default_factory=dict)
    ungraded: dict[str, None] = field(default_factory=dict)
    cast: dict[str, None] = field(default_factory=dict)
    written: dict[str, None] = field(default_factory=dict)
    mended: set[str] = field(default_factory=set)

    def notes(self) -> tuple[str, ...]:
        """A line for people on each kind."""
        said = (
            ("decide by self.training: traced as in this mode, what they do in the other is not in the graph", [p for p in self.asked if p not in self.mended]),
            ("computed under torch.no_grad(): in the graph gradients flow through", self.ungraded),
            ("computed under autocast: in the graph they have the type of their inputs", self.cast),
            ("set by forward: the graph does not", self.written),
        )  # fmt: skip
        return tuple(f"{_listed(list(names))} {what}" for what, names in said if names)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@contextmanager
def untouched(model: nn.Module, asides: Asides, *, flags: bool) -> Iterator[None]:
    """Put attributes and buffers back as they were; with `flags`, `training` of the user's classes tells who decides by it."""
    kept = [(path, module, _Held(module)) for path, module in modules_by_path(model).items() if not _is_torchs(module)]
    for path, module, _ in kept if flags else ():
        name = path or type(module).__name__
        module.__dict__["training"] = Flag(module.training, lambda name=name: asides.asked.setdefault(name))  # type: ignore[misc]
    try:
        yield
    finally:
        for path, module, held in kept:
            for name in held.put_back(module):
                asides.written.setdefault(f"{path}.{name}" if path else name)


def _is_torchs(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn")


class _Held:
    """A module's attributes, what its own containers hold, and its buffers' numbers."""

    def __init__(self, module: nn.Module) -> None:
        self._attributes = dict(module.__dict__)
        self._contents = {key: _copied(held) for key, held in module.__dict__.items() if key not in _OWN and type(held) in _COPIES and held}
        self._empty = [key for key, held in module.__dict__.items() if key not in _OWN and type(held) in _COPIES and not held]
        self._slots = {slot: dict(module.__dict__[slot]) for slot in ("_parameters", "_buffers")}
        self._numbers = {key: (held, held._version, held.detach().clone()) for key, held in module._buffers.items() if held is not None}

    def put_back(self, module: nn.Module) -> list[str]:
        """Undo; the names of what had changed."""
        now = module.__dict__
        changed = [key for key in {**self._attributes, **now} if key != "training" and now.get(key) is not self._attributes.get(key)]
        changed += [key for key, held in self._contents.items() if now.get(key) is self._attributes[key] and not _alike(now[key], held)]
        changed += [key for key in self._empty if now.get(key) is self._attributes[key] and now[key]]
        now.clear()
        now.update(self._attributes)
        for key in (*self._contents, *self._empty):
            _refill(now[key], self._contents.get(key, ()))
        for slot, held in self._slots.items():
            changed += [key for key in held if now[slot].get(key) is not held[key]]
            now[slot].clear()
            now[slot].update(held)
        for key, (tensor, version, numbers) in self._numbers.items():
            if tensor._version != version:
                changed.append(key)
                with torch.no_grad():
                    tensor.copy_(numbers)
        return [key for key in changed if not key.startswith("_tensor_constant")]  # those are the tracer's own


_COPIES = (list, dict, set)


def _copied(held: Any) -> Any:
    return held.copy()


def _alike(now: Any, before: Any) -> bool:
    """Whether a container holds the very objects that it held."""
    if len(now) != len(before):
        return False
    pairs = zip(now.items(), before.items(), strict=True) if isinstance(now, dict) else zip(now, before, strict=True)
    return all(a is b or (isinstance(now, dict) and a[0] == b[0] and a[1] is b[1]) for a, b in pairs)


def _refill(held: Any, content: Any) -> None:
    if held != content if not held else not _alike(held, content):
        held.clear()
        held.extend(content) if isinstance(held, list) else held.update(content)
