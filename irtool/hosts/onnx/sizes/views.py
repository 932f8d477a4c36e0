"""Views and positions whose channels were cut, at other sizes of the inputs than the example's.

A Reshape to (-1, 16 * 5 * 5) runs on images of another size, too: the batch takes up what the literal leaves over, and rows hold
some of the channels at more positions. Slicing whole channels means nothing there, so that the pruned file refuses such sizes.
ONNX has no assertion, but a Reshape refuses sizes whose product is not the number of elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from irtool.hosts.onnx.sizes.static_shapes import Dims, dimensions
from irtool.ir.graph import Node, Value
from irtool.ops.view_axes import behind_channels, view_axes

if TYPE_CHECKING:
    from irtool.hosts.onnx.graph import OnnxGraph

NOTE = "refused at sizes of the input at which it would mix channels with other axes"
Insert = Callable[[gs.Node, Sequence[gs.Node]], None]
"""Puts nodes in front of a host node under names that are free, and reads them."""
Listed = Sequence[int | None]
"""The sizes that a Reshape asks for, as written; None for one that is computed from sizes, 0 (the input's own) among them."""


class ViewGuards:
    """Lets a sliced program refuse sizes at which a view would mix channels with the batch or with positions.

    Args:
        graph: the graph before slicing.
        shape: the shape of a value after slicing.
        insert: how nodes come into the program.
    """

    def __init__(self, graph: OnnxGraph, shape: Callable[[Value], tuple[int, ...]], insert: Insert) -> None:
        self._graph, self._shape, self._insert = graph, shape, insert
        self._dims: Mapping[str, Dims] | None = None
        inputs = (size for tensor in graph.host.inputs for size in tensor.shape or ())
        self._is_fixed = all(isinstance(size, int) and size > 0 for size in inputs)  # then the file runs at no other size
        self.notes: list[str] = []

    def guard(self, host: gs.Node, view: Node) -> None:
        """Guard one node of the program that is being sliced, before it is read.

        Args:
            host: the node.
            view: the view of the same node before slicing.
        """
        guards = {"Reshape": self._view, "Slice": self._positions, "Gather": self._positions}
        if not self._is_fixed and host.op in guards and host.op == view.op and len(host.inputs) > 1 and guards[host.op](host, view):
            self.notes.append(f"{view.location}: {NOTE}")

    def _view(self, host: gs.Node, view: Node) -> bool:
        before, after = view.input.sizes, view.output.sizes
        cut = self._cut(view.input), self._cut(view.output)
        found, listed = view_axes(before, after, cut), _listed(view.host.inputs[1], len(after), bool(host.attrs.get("allowzero", 0)))
        if found is None or not found.open(listed):
            return False
        behind, edit = behind_channels(before, after, cut), _Edit(host, listed, self._insert)
        if behind is None:
            (i, o), (j, p) = found.first, found.last
            for axes, asked in ((range(i), range(o)), (range(i, j), range(o, p)), (range(j, len(before)), range(p, len(after)))):
                if all(listed[axis] != -1 for axis in asked):
                    edit.hold(
                        _Equal(axes, asked, _ratio([self._shape(view.input)[axis] for axis in axes], [after[axis] for axis in asked]))
                    )
            return True
        (j, p), (one, other) = behind.places, behind.ratio
        if self._are_fixed(view.input, j) and _are_written(listed[p:]):
            return False  # no input changes what lies behind the channels
        zeros = cut[0][0] == 1 and listed[0] == -1 and before[0] == after[0] and _are_written(listed[1 : cut[1][0]])
        if zeros and not host.attrs.get("allowzero", 0):
            edit.put(0, 0)  # the batch keeps its size, and so the number of elements settles the rest
            return True
        if -1 not in listed[p:]:
            edit.hold(_Equal(range(j, len(before)), range(p, len(after)), (one, other)))
        front = range(cut[0][0]), range(cut[1][0])
        if -1 in listed[cut[1][0] :] and not (front[1] and all(listed[axis] is None for axis in front[1])):
            edit.hold(_Equal(*front, _ratio(before[: cut[0][0]], after[: cut[1][0]])))  # it settles what lies behind
        return True

    def _positions(self, host: gs.Node, view: Node) -> bool:
        """Positions along an axis that holds channels and places must be those of the example."""
        value, output = view.input, view.output
        if view.op == "Gather":
            moved = {view.attrs["axis"]}
        else:
            moved = {axis for axis, (old, new) in enumerate(zip(value.sizes, output.sizes, strict=True)) if old != new}
        cut = [axis for axis in self._cut(value) if axis in moved and not isinstance(self._sizes(value)[axis], int)]
        if not cut:
            return False
        sizes = [self._shape(value)[axis] if axis in cut else 0 for axis in range(len(value.sizes))]
        _Edit(host, (), self._insert).keep_extent(sizes)
        return True

    def _cut(self, value: Value) -> list[int]:
        return [axis for axis, (old, new) in enumerate(zip(value.sizes, self._shape(value), strict=True)) if old != new]

    def _are_fixed(self, value: Value, start: int) -> bool:
        return all(isinstance(size, int) for size in self._sizes(value)[start:])

    def _sizes(self, value: Value) -> Dims:
        """The sizes of a value: numbers where no input can change them."""
        if self._dims is None:
            self._dims = dimensions(self._graph.proto)
        found = self._dims.get(value.name, [])
        return found if len(found) == len(value.sizes) else [f"{value.name}:{axis}" for axis in range(len(value.sizes))]


def _are_written(sizes: Listed) -> bool:
    return all(size is not None and size > 0 for size in sizes)


def _ratio(one: Sequence[int], other: Sequence[int]) -> tuple[int, int]:
    return math.prod(one), math.prod(other)


def _listed(tensor: gs.Tensor, count: int, zeros: bool) -> list[int | None]:
    """Read what a Reshape is asked for; `zeros`: a 0 is a size of 0."""
    if isinstance(tensor, gs.Constant):
        return [size if size or zeros else None for size in np.asarray(tensor.values).reshape(-1).tolist()]
    maker = tensor.inputs[0] if tensor.inputs else None
    if maker is not None and maker.op == "Concat":
        parts = [_listed(part, 1, zeros) for part in maker.inputs]
        joined = [size for part in parts for size in part]
        return joined if len(joined) == count else [None] * count
    return [None] * count


@dataclass(frozen=True)
class _Equal:
    """Axes of a view's input and output whose products are as `ratio[0]` to `ratio[1]`."""

    before: range
    after: range
    ratio: tuple[int, int] = (1, 1)


class _Edit:
    """Edits the sizes of one Reshape, or puts one that checks in front of a node.

    Args:
        host: the node.
        listed: the sizes that it asks for.
        insert: how nodes come into the program.
    """

    def __init__(self, host: gs.Node, listed: Listed, insert: Insert) -> None:
        self._host, self._listed, self._insert = host, listed, insert
        self._source, self._count = host.inputs[0], 0

    def hold(self, part: _Equal) -> None:
        """Let the node refuse sizes at which two products are not as they were: what it asks for is multiplied by more than 1 then."""
        whole = self._product([self._extent(part.before), self._number(part.ratio[1])])
        stated = self._product([self._stated(part.after), self._number(part.ratio[0])])
        apart = self._node("Abs", [self._node("Sub", [whole, stated])])
        self._host.inputs[1] = self._node("Mul", [self._host.inputs[1], self._node("Add", [apart, self._number(1)])])

    def put(self, place: int, size: int) -> None:
        """Ask for a size in one place."""
        sizes = self._host.inputs[1]
        parts = [self._gather(sizes, range(place)), self._number(size), self._gather(sizes, range(place + 1, len(self._listed)))]
        self._host.inputs[1] = self._concat([part for part in parts if part is not None])

    def keep_extent(self, sizes: Sequence[int]) -> None:
        """Put a Reshape to these sizes in front of the node."""
        self._host.inputs[0] = self._node("Reshape", [self._host.inputs[0], self._constant(list(sizes))])

    def _extent(self, axes: Sequence[int]) -> gs.Tensor:
        found = self._gather(self._node("Shape", [self._source]), axes)
        return self._number(1) if found is None else self._node("ReduceProd", [found], keepdims=1)

    def _stated(self, axes: Sequence[int]) -> gs.Tensor:
        """The product of sizes that the view asks for."""
        factors = [self._number(math.prod(self._listed[axis] or 1 for axis in axes))]
        for axis in axes:
            if self._listed[axis] is None:
                copied = isinstance(self._host.inputs[1], gs.Constant)  # a 0
                found = self._extent([axis]) if copied else self._gather(self._host.inputs[1], [axis])
                assert found is not None
                factors.append(found)
        return self._product(factors)

    def _product(self, factors: Sequence[gs.Tensor]) -> gs.Tensor:
        written = math.prod(int(factor.values[0]) for factor in factors if isinstance(factor, gs.Constant))
        flowing = [factor for factor in factors if not isinstance(factor, gs.Constant)]
        if not flowing or written != 1:
            flowing.append(self._number(written))
        result, *rest = flowing
        for factor in rest:
            result = self._node("Mul", [result, factor])
        return result

    def _gather(self, sizes: gs.Tensor, places: Sequence[int]) -> gs.Tensor | None:
        if not places:
            return None
        if isinstance(sizes, gs.Constant):
            return self._constant(np.asarray(sizes.values)[list(places)].tolist())
        return self._node("Gather", [sizes, self._constant(list(places))], axis=0)

    def _concat(self, parts: Sequence[gs.Tensor]) -> gs.Tensor:
        if all(isinstance(part, gs.Constant) for part in parts):
            return self._constant([int(size) for part in parts for size in np.asarray(part.values).tolist()])
        return parts[0] if len(parts) == 1 else self._node("Concat", list(parts), axis=0)

    def _number(self, value: int) -> gs.Constant:
        return self._constant([value])

    def _constant(self, values: list[int]) -> gs.Constant:
        return gs.Constant(self._name(), np.array(values, np.int64))

    def _node(self, op: str, inputs: list[gs.Tensor], **attrs: int) -> gs.Variable:
        result = gs.Variable(self._name())
        self._insert(self._host, [gs.Node(op, f"{result.name}.{op}", attrs, inputs, [result])])
        return result

    def _name(self) -> str:
        self._count += 1
        return f"{self._host.name}.guard_{self._count}"
