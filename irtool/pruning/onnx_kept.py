"""Operators that mix channels, written so that they compute from the channels that stay: what a sliced ONNX graph does there.

The counterpart of `analysis.survivors`, which computes on tensors, for a reference that is itself an ONNX graph: the
surviving channels are gathered in front of the operator, and its result is spread out again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from torch import Tensor

from irtool.ir.graph import Node
from irtool.ops.mixing import mixed_axes

_PER_CHANNEL: dict[str, tuple[int, ...]] = {
    "LRN": (), "Cumsum": (), "LpNormalization": (), "Softmax": (), "Reduce": (), "Conv": (), "InstanceNormalization": (),
    "LayerNormalization": (1, 2), "RMSNormalization": (1,), "GroupNormalization": (1, 2),
}  # fmt: skip
"""Operators that have this form, and which of their inputs hold numbers for the channels that are mixed."""
_BY_ELEMENT = 11
"""The first operator set that gathers element by element."""
_BY_AXIS_ONE = frozenset({"GroupNormalization"})
"""Operators whose parameters lie along axis 1; those of others lie along the last axes."""

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


def on_survivors(node: Node, own: gs.Node, masks: Sequence[Tensor], opset: int) -> list[gs.Node] | None:
    """Rewire one host node in place so that it sees the surviving channels alone.

    Args:
        node: its view.
        own: the host node, of a copy of the program.
        masks: which channels of its first input stay, one of each label tensor's shape (size 1 along axes without channels).
        opset: the version of the standard operators.

    Returns:
        The nodes in its place, itself among them. The result holds any number where a channel was removed: whoever reads
        it must mask it. None where this has no plain form; nothing is changed then.
    """
    places = _PER_CHANNEL.get(node.op)
    if places is None or any(output.outputs for output in own.outputs[1:]):
        return None
    mixed, steps = mixed_axes(node, len(node.input.sizes)), list[_Step]()
    for mask in masks:
        stays = mask.numpy()
        if mixed.intersection(_long(stays)):
            found = _steps(stays, mixed, opset)
            if found is None:
                return None
            steps += found
    parameters = _parameters(node, own, places, steps)
    if parameters is None or not steps:
        return None
    for place, values in parameters.items():
        own.inputs[place] = gs.Constant(f"{own.name}.survivors_{place}", values)
    return _rewired(node, own, steps)


@dataclass(frozen=True)
class _Step:
    """Entries taken along one axis.

    Attributes:
        axis: of the first input.
        pick: positions that stay: of one axis, or of the rank of the input where each row has its own.
        spread: for every position its place among those that stay; any for one that does not.
    """

    axis: int
    pick: Ints
    spread: Ints

    def parameter(self, values: NDArray[np.generic], axis: int) -> NDArray[np.generic] | None:
        """What stays of a parameter along an axis of its own; None if each row keeps others."""
        if self.pick.ndim > 1 or values.shape[axis] != self.spread.size:
            return None
        return np.take(values, self.pick, axis)


def _long(stays: Bools) -> list[int]:
    return [axis for axis, size in enumerate(stays.shape) if size > 1]


def _steps(stays: Bools, mixed: set[int], opset: int) -> list[_Step] | None:
    """Whole slabs along each axis, and what is left of the last one row by row; None if rows keep unequally many."""
    found, axes = list[_Step](), _long(stays)
    for axis in axes:
        slab = np.asarray(stays.any(tuple(other for other in range(stays.ndim) if other != axis)))
        if not slab.all():
            found.append(_Step(axis, np.flatnonzero(slab), _places(slab)))
            stays = np.compress(slab, stays, axis)
    if stays.all():
        return found
    last = axes[-1]
    counts = stays.sum(last)
    if opset < _BY_ELEMENT or last not in mixed or counts.min() != counts.max():
        return None
    order = np.argsort(~stays, axis=last, kind="stable").take(range(int(counts.max())), last)
    return [*found, _Step(last, order, np.where(stays, stays.cumsum(last) - 1, 0))]


def _places(stays: Bools) -> Ints:
    return np.where(stays, stays.cumsum() - 1, 0)


def _parameters(node: Node, own: gs.Node, places: Sequence[int], steps: Sequence[_Step]) -> dict[int, NDArray[np.generic]] | None:
    """The surviving entries of the parameters, by their place among the inputs; None where they cannot be told."""
    found: dict[int, NDArray[np.generic]] = {}
    for place in places:
        if len(own.inputs) <= place or not own.inputs[place].name:
            continue
        if not isinstance(own.inputs[place], gs.Constant):
            return None
        values = np.asarray(own.inputs[place].values)
        for step in steps:
            axis = step.axis - (1 if node.op in _BY_AXIS_ONE else len(node.input.sizes) - values.ndim)
            if not 0 <= axis < values.ndim or values.shape[axis] == 1:
                continue
            left = step.parameter(values, axis)
            if left is None:
                return None
            values = left
        found[place] = values
    return found


def _rewired(node: Node, own: gs.Node, steps: Sequence[_Step]) -> list[gs.Node]:
    made = _Made(own.name)
    before, flowing = list[gs.Node](), own.inputs[0]
    for step in steps:
        flowing = made.take(flowing, step.axis, step.pick, before)
    own.inputs[0] = flowing
    back = list(_spreads(node, steps))
    if not back:
        return [*before, own]
    output, flowing, after = own.outputs[0], made.value(), list[gs.Node]()
    own.outputs[0] = flowing
    for axis, places in reversed(back):
        flowing = made.take(flowing, axis, places, after)
    after[-1].outputs[0] = output
    return [*before, own, *after]


def _spreads(node: Node, steps: Sequence[_Step]) -> Iterator[tuple[int, Ints]]:
    """Where entries go back to, along the axes of the result: a reduction has none of the axes that it adds up."""
    if node.op != "Reduce":
        yield from ((step.axis, step.spread) for step in steps)
        return
    gone = mixed_axes(node, len(node.input.sizes))
    for step in steps:
        if step.axis not in gone:
            yield step.axis - (0 if node.attrs.get("keepdim") else sum(axis < step.axis for axis in gone)), step.spread


@dataclass
class _Made:
    """Names of what is put in around one operator."""

    name: str
    _count: int = field(default=0)

    def value(self) -> gs.Variable:
        """A tensor that flows."""
        self._count += 1
        return gs.Variable(f"{self.name}.survivors.{self._count}")

    def constant(self, values: NDArray[np.generic]) -> gs.Constant:
        """A stored one."""
        self._count += 1
        return gs.Constant(f"{self.name}.survivors.{self._count}", np.ascontiguousarray(values))

    def node(self, op: str, inputs: list[gs.Tensor], into: list[gs.Node], **attrs: int) -> gs.Variable:
        """A node at the end of `into`, and its result."""
        result = self.value()
        into.append(gs.Node(op, f"{result.name}.{op}", attrs, inputs, [result]))
        return result

    def take(self, source: gs.Tensor, axis: int, index: Ints, into: list[gs.Node]) -> gs.Variable:
        """Entries along an axis, by one index for all rows or by one for each; the sizes of other axes are whatever they are."""
        if index.ndim < 2:
            return self.node("Gather", [source, self.constant(index.astype(np.int64))], into, axis=axis)
        fixed = np.array(index.shape) > 1
        fixed[axis] = True
        sizes = self.node("Shape", [source], into)
        sizes = self.node("Where", [self.constant(fixed), self.constant(np.array(index.shape, np.int64)), sizes], into)
        whole = self.node("Expand", [self.constant(index.astype(np.int64)), sizes], into)
        return self.node("GatherElements", [source, whole], into, axis=axis)
