"""The program that torch.export makes of a model, with the axes free that the model and it leave free."""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from irtool.errors import TraceError
from irtool.hosts.torch.modules import modules_by_path
from irtool.hosts.torch.tracing.checking.compare import Change, larger_batch, other_images
from irtool.hosts.torch.tracing.checking.reference import Reference
from irtool.hosts.torch.tracing.recording.aliases import canonical
from irtool.hosts.torch.tracing.recording.autograd import own_backwards
from irtool.hosts.torch.tracing.recording.factories import symbolic_numbers
from irtool.hosts.torch.tracing.recording.hooks import hooked
from irtool.hosts.torch.tracing.state.sandbox import TraceNotes, untouched
from irtool.nests import tensors_in


def exported(model: nn.Module, inputs: Sequence[Any], leaf: Sequence[str | type], asides: TraceNotes) -> fx.GraphModule:
    """The program, with the batch and the image of any size where torch.export can.

    Raises:
        TraceError: modules are to stay whole. torch.export raises whatever its parts raise.
    """
    if leaf:
        raise TraceError("torch.export cannot keep named modules whole", remedy="Drop leaf=.")
    reference = Reference(model, inputs, {})
    batch, image = _dynamic_shapes(reference)
    module = _free_or_none(reference, [batch] if batch is not None else [], asides)
    if module is None:
        module = _exported(model, inputs, None, asides)
    if image is None or len(module.graph.nodes) > _SMALL:
        return module
    return _free_or_none(reference, [change for change in (batch, image) if change is not None], asides) or module


_SMALL = 300
"""Nodes of a program that torch.export is asked for once more with images of any size: that takes it up to 30 times as long."""


def _free_or_none(reference: Reference, changes: Sequence[Change], asides: TraceNotes) -> fx.GraphModule | None:
    """The program with the axes of some changes free; None where torch.export cannot, or the program does not agree with the model.

    torch takes sizes of 0 and 1 for the model's own, so that a batch of one is doubled.
    """
    if not changes:
        return None
    model, inputs = reference.model, reference.inputs
    doubled = changes[0].what == "batch" and _batch(inputs, changes[0]) < 2
    try:
        module = _exported(model, changes[0].inputs if doubled else inputs, _free_axes(inputs, changes), asides)
    except Exception:  # torch.export raises whatever its parts raise
        return None
    return module if reference.agrees(module, inputs) else None


def _exported(model: nn.Module, inputs: Sequence[Any], shapes: Any, asides: TraceNotes) -> fx.GraphModule:
    """The program of torch.export, without its guards, in the modes of the model."""
    numbers = symbolic_numbers(modules_by_path(model).values())
    with _silent(), own_backwards(asides), untouched(model, asides, flags=False), numbers:
        module = torch.export.export(model, tuple(inputs), strict=False, dynamic_shapes=shapes).module(check_guards=False)
    for refused in ("train", "eval"):  # exported modules refuse both; `follow_modes` puts back what the modes change
        module.__dict__.pop(refused, None)
    module._forward_pre_hooks.clear()  # checks of its own, which no copy of the program has, and which cannot be pickled
    module._forward_hooks.clear()
    modes = {path: child.training for path, child in modules_by_path(model).items()}
    asides.hooked.update((path, None) for path, child in modules_by_path(model).items() if hooked(child))
    for path, child in modules_by_path(module).items():  # torch.export leaves them all in train mode
        child.training = modes.get(path, model.training)
    for node in list(module.graph.nodes):
        if node.op == "call_function":
            node.target = _PLAIN.get(node.target) or canonical(node.op, node.target, {})[0]
        if not node.users and _is_guard(node):
            module.graph.erase_node(node)
    module.recompile()
    return module


@contextmanager
def _silent() -> Iterator[None]:
    """Silence torch.export, which prints its graph and logs an advice where it fails; what to do is in our error."""
    logger = logging.getLogger("torch.export._trace")
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


_PLAIN: dict[Any, Callable[..., Any]] = {
    torch.sym_float: float, torch.sym_int: int, math.trunc: int, torch.sym_max: max, torch.sym_min: min,
    **{getattr(getattr(torch.ops.aten, f"__{name}__"), kind): getattr(getattr(torch.ops.aten, f"bitwise_{name}"), kind)
       for name in ("and", "or", "xor") for kind in ("Tensor", "Scalar")},
}  # fmt: skip
"""Functions that torch.export calls on sizes and on flags, by the names that archives know; on plain numbers they are the same."""


def _is_guard(node: fx.Node) -> bool:
    name = str(node.target)
    return node.op != "placeholder" and any(part in name for part in ("_guards", "_assert", "sym_constrain", "aten.sym_"))


def _dynamic_shapes(reference: Reference) -> tuple[Change | None, Change | None]:
    """Another batch and another image size, where the model takes them."""
    batch = larger_batch(reference.inputs)
    image = next((change for change in other_images(reference.inputs) if reference.outputs(change.inputs) is not None), None)
    return (batch if batch is not None and reference.outputs(batch.inputs) is not None else None), image


def _batch(inputs: Sequence[Any], change: Change) -> int:
    tensors = tensors_in(tuple(inputs))
    return min(tensors[number].shape[0] for number in change.axes)


def _free_axes(inputs: Sequence[Any], changes: Sequence[Change]) -> Any:
    """`dynamic_shapes` for torch.export, which settles by itself what the model does not leave free."""
    auto, count = torch.export.Dim.AUTO, iter(range(10**6))

    def axes(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return None
        number = next(count)
        return {axis % leaf.dim(): auto for change in changes for axis in change.axes.get(number, ())} or None

    return tuple(pytree.tree_map(axes, item) for item in inputs)
