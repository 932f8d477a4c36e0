"""Slice the user's own module in place: class, methods and names stay, parameters shrink."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from irtool.errors import OptionError, PlanError
from irtool.hosts.torch.channel_select import ChannelSelect
from irtool.hosts.torch.graph import FxGraph
from irtool.hosts.torch.modules import attribute
from irtool.hosts.torch.sizes.layer_sizes import exported_sizes, layer_of, parameter_sizes
from irtool.hosts.torch.tracing.trace import trace
from irtool.ir.graph import Node
from irtool.nests import map_tensors, tensors_in
from irtool.pruning.absorb.absorb import absorption
from irtool.pruning.absorb.bias import add_biases
from irtool.pruning.plan import Plan
from irtool.pruning.slicing.plan_slicing import find_slicing
from irtool.pruning.slicing.slicing import Slicing
from irtool.tensor_defaults import plain_tensors, seeded

_REMEDY = "Use prune(graph, plan), whose graph needs no class, or leave that layer out with ignore=."
_RELATIVE = frozenset({"chunk", "tensor_split"})
"""Splits that state no size: where the plan keeps the parts alike, the class still splits as the graph does."""
_TOLERANCE = 1e-9


@plain_tensors()
def apply(plan: Plan, model: nn.Module, example_inputs: Any = None, constants: Literal["drop", "absorb"] = "absorb") -> nn.Module:
    """Remove a plan's channels from a model itself.

    The slicing is the proven one that `prune` carries out on the graph. Afterwards the model must give the pruned graph's
    outputs in eval mode on random inputs of the example's shapes (bit-equal, or to 1e-9 relative in float64); if it does
    not, it is put back as it was. Optimizers made before hold the old parameters: make them anew.

    Args:
        plan: what goes; made with `residual="couple"` or `"keep"`.
        model: the instance to slice, in place.
        example_inputs: a tensor, or a tuple of the positional arguments of `forward`, as for `trace`.
        constants: as for `prune`; `"absorb"` may give layers without a bias one.

    Returns:
        The same object.

    Raises:
        OptionError: no example inputs, or an unknown `constants`.
        PlanError: the plan is of another model, or `forward` has sizes written into it; the text names the place.
        TraceError: the model cannot be traced.
    """
    if example_inputs is None:
        raise OptionError(
            "the model must be traced, and there are no inputs to do it with",
            where="example_inputs",
            remedy="Pass the inputs that trace() was given.",
        )
    if constants not in ("drop", "absorb"):
        raise OptionError(f"constants {constants!r} does not exist", remedy="Choose absorb or drop.")
    if plan.branches:
        raise PlanError("the plan takes out what an addition adds, and forward adds it", where=plan.branches[0], remedy=_REMEDY)
    graph = trace(model, example_inputs)
    slicing = find_slicing(graph, plan)
    pruned = slicing.fill()
    doubtful = _check_program(slicing, pruned)
    if constants == "absorb":
        pruned = add_biases(pruned, slicing.labels, slicing.keep, absorption(slicing.labels, slicing.keep).biases)
    changes = _Changes()
    try:
        _set_attributes(graph, pruned, model, changes)
        _set_tensors(graph, pruned, model, changes)
        for module, key, value in [*exported_sizes(graph, pruned, doubtful, model), *parameter_sizes(model)]:
            changes.set(module.__dict__, key, value)
        _check_outputs(model, pruned, doubtful)
    except BaseException:
        changes.undo()
        raise
    return model


@dataclass
class _Changes:
    """Changes of a model, kept so that it can be put back."""

    done: list[tuple[MutableMapping[str, Any], str, Any]] = field(default_factory=list)

    def set(self, slot: MutableMapping[str, Any], key: str, value: Any) -> None:
        self.done.append((slot, key, slot[key]))
        slot[key] = value

    def undo(self) -> None:
        for slot, key, old in reversed(self.done):
            slot[key] = old


def _check_program(slicing: Slicing[FxGraph], pruned: FxGraph) -> list[Node]:
    """Refuse selections that the class does not have; returns the edits of the program that only the outputs can tell about.

    A size in the program may stand in `forward`, or be what `forward` computed from the sizes of the example.
    """
    nodes = {node.name: node for node in slicing.source.nodes}
    edited = [nodes[name] for name in slicing.edited]
    for path, module in pruned.module.named_modules():
        before = slicing.source.module.get_submodule(path)
        if isinstance(module, ChannelSelect) and isinstance(before, ChannelSelect) and not torch.equal(module.index, before.index):
            reader = next(
                (node for node in slicing.source.nodes for value in node.inputs if value.producer and value.producer.host.target == path),
                None,
            )
            where = reader.location if reader is not None else path
            remedy = "Use prune(graph, plan), or plan with residual='couple' or 'keep'."
            raise PlanError("the plan selects channels here, and the class has no selection", where=where, remedy=remedy)
    return edited


def _name(node: Node) -> str:
    target = node.host.target
    return str(getattr(target, "__name__", target)).split(".")[0]


def _place(node: Node) -> str:
    """The node, with the source line of `forward` where tracing kept it."""
    lines = [line.strip() for line in (node.host.stack_trace or "").splitlines() if line.strip().startswith("File ")]
    return f"{node.location}, {lines[-1]}" if lines else node.location


def _set_attributes(graph: FxGraph, pruned: FxGraph, model: nn.Module, changes: _Changes) -> None:
    """Carry over the sizes that modules note (`out_channels`, `groups`, `normalized_shape` ...)."""
    own = dict(model.named_modules(remove_duplicate=False))
    before = dict(graph.module.named_modules(remove_duplicate=False))
    # In the traced graph modules are the model's own objects: what is to change must be known before anything does.
    found: list[tuple[str, str, Any]] = []
    for path, module in pruned.module.named_modules(remove_duplicate=False):
        if path and path in before:
            old = vars(before[path])
            found += [
                (path, key, value)
                for key, value in vars(module).items()
                if isinstance(value, int | str | tuple) and key in old and old[key] != value
            ]
    for path, key, value in found:
        if path not in own or key not in vars(own[path]):
            raise PlanError(f"{key} would become {value}, which forward computes by itself", where=path, remedy=_REMEDY)
        changes.set(own[path].__dict__, key, value)


def _set_tensors(graph: FxGraph, pruned: FxGraph, model: nn.Module, changes: _Changes) -> None:
    """Put each tensor that changed wherever the model holds the old one: a tied weight hangs in several places."""
    holders: dict[int, list[tuple[MutableMapping[str, Any], str]]] = {}
    for module in model.modules():
        slots: tuple[MutableMapping[str, Any], ...] = (module._parameters, module._buffers, module.__dict__)
        for slot in slots:
            for key, held in slot.items():
                if isinstance(held, Tensor):
                    holders.setdefault(id(held), []).append((slot, key))
    olds = dict([*graph.module.named_parameters(), *graph.module.named_buffers()])
    for name, new in [*pruned.module.named_parameters(), *pruned.module.named_buffers()]:
        old = olds.get(name)
        if old is not None and new.shape == old.shape and torch.equal(new, old):
            continue
        if isinstance(_attribute_or_none(pruned.module, name.rpartition(".")[0]), ChannelSelect):
            continue  # a selection of all channels, which the class does without
        for place, key in holders.get(id(old)) or _place_by_name(model, name):
            changes.set(place, key, new)


def _attribute_or_none(module: nn.Module, path: str) -> Any:
    """The object at a dotted path, or None."""
    try:
        return attribute(module, path) if path else module
    except AttributeError:
        return None


def _place_by_name(model: nn.Module, name: str) -> list[tuple[MutableMapping[str, Any], str]]:
    """Places of a tensor that the model does not hold yet: a layer's empty `bias`, or a copy that export made."""
    prefix, _, key = name.rpartition(".")
    owner = _attribute_or_none(model, prefix)
    for slot in (owner._parameters, owner._buffers) if isinstance(owner, nn.Module) else ():
        if key in slot:
            return [(slot, key)]
    remedy = "Make it a buffer of the module, or use prune(graph, plan)."
    if key.startswith("absorbed_"):
        remedy = "Use constants='drop', or prune(graph, plan)."
    raise PlanError("the graph has this tensor and the class does not", where=name, remedy=remedy)


def _check_outputs(model: nn.Module, pruned: FxGraph, doubtful: Sequence[Node]) -> None:
    inputs = _random(pruned.example_inputs)
    try:
        equal = _agree(model, pruned, inputs)
        error = None
    except Exception as caught:  # forward is the user's code, and may fail in any way on sizes that it does not expect
        equal, error = False, caught
    if equal:
        return
    written = [node for node in doubtful if _name(node) not in _RELATIVE and layer_of(node, model) is None]
    where = _place([*written, *doubtful][0]) if doubtful else type(model).__name__
    what = "the sliced class does not compute what the pruned graph computes"
    if written:
        what = f"forward has a size written into it ({written[0].callee})"
    elif error is not None:
        what = f"forward fails on the sliced sizes ({(str(error).strip().splitlines() or [type(error).__name__])[0][:160]})"
    raise PlanError(f"{what}; it was put back as it was", where=where, remedy=_REMEDY) from error


def _agree(model: nn.Module, pruned: FxGraph, inputs: Sequence[Any]) -> bool:
    """Bit-equal, or equal in float64 up to rounding (a traced program may order its sums otherwise than the class)."""
    if _compare(_run(model, inputs), _leaves(seeded(pruned.run, *_copied(inputs))), torch.equal):
        return True
    exact = pruned.to(torch.float64)
    return _compare(
        _run(copy.deepcopy(model).double(), map_tensors(inputs, _double)), _leaves(seeded(exact.run, *map_tensors(inputs, _double))), _close
    )


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor.clone()


def _close(a: Tensor, b: Tensor) -> bool:
    scale = float(b.abs().max()) if b.numel() else 0.0
    return bool((a - b).abs().max() <= _TOLERANCE * scale) if b.is_floating_point() and b.numel() else torch.equal(a, b)


def _compare(a: Sequence[Tensor], b: Sequence[Tensor], equal: Callable[[Tensor, Tensor], bool]) -> bool:
    return len(a) == len(b) and all(x.shape == y.shape and equal(x, y) for x, y in zip(a, b, strict=True))


def _run(model: nn.Module, inputs: Sequence[Any]) -> list[Tensor]:
    with _evaluating(model), torch.no_grad():
        return _leaves(seeded(model, *_copied(inputs)))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _leaves(result: Any) -> list[Tensor]:
    return tensors_in(result)


def _copied(inputs: Sequence[Any]) -> Any:
    """In-place operators of `forward` must not reach the other program's inputs."""
    return map_tensors(inputs, torch.clone)


def _random(inputs: Sequence[Any]) -> Any:
    generator = torch.Generator().manual_seed(0)

    def draw(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator).to(tensor) if tensor.is_floating_point() else tensor

    return map_tensors(tuple(inputs), draw)
