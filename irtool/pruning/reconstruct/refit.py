"""Layers of a sliced graph that can be refitted, and the outputs that each is to give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from irtool.errors import LayerError
from irtool.ir.frontier import Stop
from irtool.ir.graph import Graph, Node, Value
from irtool.ops.batch_norm import not_fixed, scale_and_shift
from irtool.ops.properties import LAYERS, WINDOWED
from irtool.ops.rules.contraction import inputs_first
from irtool.pruning.absorb.contribution import channel_axis, has_plain_window, weight_of
from irtool.pruning.names import names
from irtool.pruning.slicing.slicing import Slicing


@dataclass(frozen=True)
class Task:
    """One layer, and what its output is measured against.

    Attributes:
        node: the layer in the sliced graph.
        watched: the name of the node of the original whose output is the aim: the layer, or the addition behind it.
        kept: which channels of that output stay, in the order of the sliced layer's; None if all do.
        beside: for other axes that lost entries, the positions that stay.
        other: the other operand of the addition, in the sliced graph; None if there is none.
        scale, shift: what lies between the layer and the addition, or what reads the layer alone (a batch norm), per channel,
            float64, (outputs,); 1 and 0 for nothing.
    """

    node: Node
    watched: str
    kept: Tensor | None
    beside: tuple[tuple[int, Tensor], ...]
    other: Value | None
    scale: Tensor
    shift: Tensor

    @property
    def stop(self) -> Stop:
        """The stop of the walk for it, with what it looks at there."""
        reads = [(self.node.input, self.node)]
        if self.other is not None:
            reads.append((self.other, next(use for use in self.other.uses if use.name == self.watched)))
        return Stop(self.node, reads)

    def aligned(self, value: Tensor) -> Tensor:
        """A value of the original without the entries that went along other axes than the channels'."""
        for axis, positions in self.beside:
            value = value.index_select(axis, positions.to(value.device))
        return value


def tasks(slicings: Sequence[Slicing[Any]], new: Graph, ignore: Sequence[str]) -> tuple[list[Task], list[str]]:
    """The layers that can be refitted, in the order in which they run, and a note on each that cannot.

    Args:
        slicings: the proven slicings that lead from the original to the sliced graph, one after the other.
        new: the graph of the last, filled.
        ignore: module paths, or node names, whose layers stay as they are.

    Raises:
        LayerError: a name in `ignore` that no layer has.
    """
    sources = {node.name: node for node in slicings[0].labels.graph.nodes}
    found, notes, order = [], [], {node.name: index for index, node in enumerate(new.nodes)}
    left = _ignored(new, ignore)
    for node in new.nodes:
        if node.op not in LAYERS or weight_of(node) is None or (node.op == "MatMul" and not node.inputs[-1].is_param):
            continue
        reason = "ignored" if node.name in left else _unfit(slicings[0], new, node)
        source = sources.get(node.name)
        if reason is None and source is not None:
            try:
                found.append(_task(slicings, node, source, sources, order))
                continue
            except _UnclearError as error:
                reason = str(error)
        notes.append(f"{node.location}: left as it is ({reason or 'a pass made it'})")
    return found, notes


class _UnclearError(Exception):
    """Raised for a layer whose outputs cannot be found among the original's."""


def _ignored(graph: Graph, ignore: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for name in ignore:
        chosen = {node.name for node in graph.nodes if names(name, node)}
        if not chosen and name not in graph.paths():
            raise LayerError(f"no layer is called {name!r}", where="ignore", remedy="irtool inspect lists the layers.")
        found |= chosen
    return found


def _unfit(slicing: Slicing[Any], graph: Graph, node: Node) -> str | None:
    """Return the reason for which a layer cannot be refitted; None if it can."""
    weight = weight_of(node)
    assert weight is not None
    if weight.data is None:
        return "its weight is computed"
    if not weight.data.is_floating_point() or any(role.startswith("weight_") for role in node.operands):
        return "its weight is quantised"
    if len(weight.uses) > 1:
        return f"its weight serves {len(weight.uses)} calls"
    bias = node.get("bias")
    if bias is not None and not bias.is_param:
        return "its bias is computed"
    if node.input.is_param or (node.op in ("Gemm", "MatMul") and len(weight.sizes) != 2):
        return "it is no plain layer"
    if not has_plain_window(node) or slicing.labels.decisions.get((node.name, "slides")):
        return "its window cannot be told"
    return None


def _task(slicings: Sequence[Slicing[Any]], node: Node, source: Node, sources: dict[str, Node], order: dict[str, int]) -> Task:
    axis = channel_axis(node, node.output)
    kept = kept_outputs(slicings, node)
    count = source.output.sizes[axis] if kept is None else kept.numel()
    if len(source.output.sizes) != len(node.output.sizes) or count != node.output.sizes[axis]:
        raise _UnclearError("its outputs are not those of the original")
    beside = tuple(
        (other, _along(slicings, source.output.name, other))
        for other, (was, size) in enumerate(zip(source.output.sizes, node.output.sizes, strict=True))
        if other != axis and was != size
    )
    scale, shift, added, operand = _behind(node, axis, order)
    if added is not None and (added.name not in sources or sources[added.name].op != added.op):
        added = operand = None
    return Task(node, (added or node).name, kept, beside, operand, scale, shift)


def kept_outputs(slicings: Sequence[Slicing[Any]], node: Node) -> Tensor | None:
    """The positions of the outputs that stay, as the weight was sliced: read off the proven slicings."""
    weight, found = weight_of(node), None
    assert weight is not None
    depthwise = slicings[0].labels.decisions.get((node.name, "depthwise"), False)
    wanted = 1 if inputs_first(node) and not (node.op in WINDOWED and depthwise) else 0
    for slicing in slicings:
        for (name, axis), order in slicing.orders.items():
            if order is not None and name == weight.name and (axis if isinstance(axis, int) else axis[0]) == wanted:
                found = order if found is None else found[order]
    return found


def _along(slicings: Sequence[Slicing[Any]], name: str, axis: int) -> Tensor:
    """The positions that stay along another axis of a value than the channels' (positions are mixed there, not channels)."""
    found: Tensor | None = None
    for slicing in slicings:
        value = next((value for value in slicing.labels.values if value.name == name), None)
        parts = () if value is None else slicing.labels.parts(value)
        if value is None or len(parts) != 1 or parts[0].numel() != parts[0].shape[axis]:
            raise _UnclearError("channels lie along several axes of its output")
        entries = parts[0].reshape(-1).expand(value.sizes[axis])
        stays = torch.where(entries >= 0, torch.from_numpy(slicing.keep)[entries], True).nonzero()[:, 0]
        found = stays if found is None else found[stays]
    assert found is not None
    return found


def _behind(node: Node, axis: int, order: dict[str, int]) -> tuple[Tensor, Tensor, Node | None, Value | None]:
    """Follow a layer's output to the addition that it goes straight into: scale and shift on the way, the addition, its other operand."""
    value, size = node.output, node.output.sizes[axis]
    scale, shift = torch.ones(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    while len(value.uses) == 1:
        use = value.uses[0]
        if use.op == "BatchNormalization" and use.input is value and not_fixed(use) is None and channel_first(node, axis):
            by, plus = (part.cpu() for part in scale_and_shift(use))
            if by.numel() != size:
                break
            scale, shift = scale * by, shift * by + plus
        elif use.op == "Identity" or (use.op == "Dropout" and use.input is value):
            pass
        elif use.op == "Add" and len(use.inputs) == 2 and use.attrs.get("alpha") in (None, 1):
            other = use.inputs[1] if use.inputs[0] is value else use.inputs[0]
            constant = _per_channel(other, axis, node.output.sizes)
            if constant is not None:
                shift = shift + constant
            else:
                fits = not other.is_param and other.shape == node.output.shape == use.output.shape
                ready = fits and other.producer is not None and order[other.producer.name] < order[node.name]
                return (scale, shift, use, other) if ready else (scale, shift, None, None)
        else:
            break
        value = use.output
    return scale, shift, None, None


def channel_first(node: Node, axis: int) -> bool:
    """Whether channels lie where a batch norm has them: axis 1, or the only one after the batch."""
    return axis == 1 or len(node.output.sizes) == 2


def _per_channel(value: Value, axis: int, sizes: tuple[int, ...]) -> Tensor | None:
    """A parameter that is added to a layer's output as its bias would be; None if it is something else."""
    if value.data is None or not value.data.is_floating_point():
        return None
    shape = (1,) * (len(sizes) - len(value.sizes)) + value.sizes
    if len(shape) != len(sizes) or any(size != 1 for place, size in enumerate(shape) if place != axis):
        return None
    return value.data.detach().double().cpu().reshape(-1).expand(sizes[axis])
