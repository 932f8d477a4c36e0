"""Slicing: from a set of channels that stay to a rewritten, proven graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Generic

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from irtool.channels.kept import Kept
from irtool.channels.labels import Key, Labels, mixes
from irtool.errors import IrtoolError, ProofError
from irtool.ir.graph import G, Graph, Node, Value
from irtool.ops.rules.context import Axis, on_axis, varying
from irtool.ops.rules.contraction import channel_axis
from irtool.pruning.slicing.proof import Replay

Ints = NDArray[np.int64]


@dataclass(eq=False)
class Slicing(Generic[G]):
    """A proven choice of the channels that stay in a graph. It says which, and does not change; `fill` makes the smaller graph.

    Attributes:
        source: the graph whose channels go.
        labels: the first walk over it.
        keep: whether each label stays, shape (labels,).
        orders: for each parameter axis the positions of the entries that stay, in their new order; None if it is as it was.
        edited: nodes whose arguments in the program had to change.
        origin: the graph before whole branches were taken out of it, whose values a refitted graph is to give; None if it is `source`.
    """

    source: G
    labels: Labels
    keep: NDArray[np.bool_]
    orders: Mapping[Key, Tensor | None]
    edited: Sequence[str]
    origin: G | None = None
    _proven: G | None = None
    """The program that the proof was made on, until it is taken."""
    _axes: dict[str, dict[Axis, Tensor]] = field(default_factory=dict)
    _scratch: dict[tuple[torch.dtype, torch.device], Tensor] = field(default_factory=dict)

    @property
    def program(self) -> G:
        """The smaller program, whose parameters are still empty. `fill` takes it; then it is written again."""
        if self._proven is None:
            self._proven, _ = _smaller_program(self.source, self.labels, Kept(self.keep))
        return self._proven

    def on(self, source: G, origin: G | None = None) -> Slicing[G]:
        """Slice another graph of the same program, in which some parameters have other values, likewise; proven with this one."""
        return replace(self, source=source, labels=self.labels.on(source), origin=origin, _proven=None)

    def parameter(self, name: str) -> Tensor:
        """The sliced data of one parameter of the source."""
        value = self.source.params[name]
        assert value.data is not None
        found = self.sliced(name, value.data)
        return found.clone() if found is value.data else found

    def sliced(self, name: str, data: Tensor) -> Tensor:
        """Data of the shape of one parameter of the source, sliced as that is; the data itself if nothing goes."""
        indices = self._indices(name)
        grouped = next((axis for axis in indices if not isinstance(axis, int)), None)
        if grouped is not None:
            return _take_grouped(data, grouped[1], indices[grouped], indices.get(0))
        if indices.keys() == {0, 1}:
            return self._take_both(data, indices[0].to(data.device), indices[1].to(data.device))
        for axis in range(data.dim()) if indices else ():  # axis 0 first: whole rows are copied fastest
            if axis in indices:
                data = data.index_select(axis, indices[axis].to(data.device))
        return data

    def _take_both(self, data: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Slice a weight along its first two axes, a few rows at a time: a half-sliced copy would cost more than the rest, in fresh memory."""
        step = max(1, _BLOCK // data.shape[1:].numel())
        new = data.new_empty((rows.numel(), columns.numel(), *data.shape[2:]))
        parts = [(rows, new)] if rows.numel() <= step else zip(rows.split(step), new.split(step), strict=True)
        for some, into in parts:
            torch.index_select(self._rows(data, some), 1, columns, out=into)
        return new

    def _rows(self, data: Tensor, some: Tensor) -> Tensor:
        """Some rows, in memory that the next ones are written over."""
        size, kind = some.numel() * data.shape[1:].numel(), (data.dtype, data.device)
        if kind not in self._scratch or self._scratch[kind].numel() < size:
            self._scratch[kind] = data.new_empty(max(_BLOCK, size))
        return torch.index_select(data, 0, some, out=self._scratch[kind][:size].view(-1, *data.shape[1:]))

    def _indices(self, name: str) -> dict[Axis, Tensor]:
        """The positions that stay along the axes of a parameter that change."""
        if not self._axes:
            for (owner, axis), order in self.orders.items():
                if order is not None:
                    self._axes.setdefault(owner, {})[axis] = order
        return self._axes.get(name, {})

    def inexact(self) -> list[str]:
        """The steps that mix removed channels with others, with the reason."""
        stays = torch.from_numpy(self.keep)
        return [f"{node.location} ({why})" for node, table, why in self.labels.inexacts if mixes(table, stays)]

    def fill(self) -> G:
        """The smaller graph: a new one at each call, with its share of the source's parameters as they are now."""
        new, self._proven = self.program, None
        for name, value in new.params.items():
            old = self.source.params.get(name)
            if old is None or value.data is None or not value.data.is_meta:
                continue
            new.set_param(name, self.parameter(name))
        self._scratch.clear()
        new.complete(self.source)
        return new


_BLOCK = 1 << 18
"""Entries of a weight that are sliced together (1 MiB)."""


def _take_grouped(data: Tensor, groups: int, columns: Tensor | None, rows: Tensor | None) -> Tensor:
    """Slice a grouped convolution's weight: each group's rows and columns by themselves.

    `columns` are the surviving entries of axis 1 over all groups, `rows` those of axis 0; the proof has shown that every
    group that stays keeps as many of its own.
    """
    height, width = data.shape[:2]
    left = groups if columns is None else _groups_left(columns, width)
    rows = (torch.arange(height) if rows is None else rows).reshape(left, -1, 1)
    columns = (torch.arange(groups * width) if columns is None else columns).reshape(left, 1, -1)
    taken = rows * width + columns % width
    return data.flatten(0, 1).index_select(0, taken.flatten().to(data.device)).view(rows.numel(), -1, *data.shape[2:])


def _groups_left(positions: Tensor, width: int) -> int:
    """How many groups of a convolution keep any of the entries of its grouped axis, which are counted over all groups."""
    return int(torch.unique(positions // width).numel())


class _Sizes:
    """Shapes after slicing, and positions that stay, from the labels of the original values."""

    def __init__(self, labels: Labels, surviving: Kept) -> None:
        self.labels, self._surviving = labels, surviving
        self._shapes: dict[Value, tuple[int, ...]] = {}

    def mask(self, value: Value) -> NDArray[np.bool_] | None:
        """Return the entries of a value's labels that stay; None if all do."""
        masks = [self._surviving.keep[found.numpy()] for found in self._parts(value)]
        if all(mask.all() for mask in masks):
            return None
        together: NDArray[np.bool_] = reduce(np.logical_and, masks)
        return together

    def _parts(self, value: Value) -> tuple[Tensor, ...]:
        """The value's label tensors, of a parameter those of its axes; none for a value without labels."""
        if value.is_param:
            known = [(axis, self.labels.axes.get((value.name, axis))) for axis in range(len(value.sizes))]
            return tuple(on_axis(found, axis, len(value.sizes)) for axis, found in known if found is not None and found.numel() > 1)
        labels = self.labels.values.get(value)
        return () if labels is None else (labels, *self.labels.more.get(value, ()))

    def shape(self, value: Value) -> tuple[int, ...]:
        """The value's shape after slicing."""
        found = self._shapes.get(value)
        if found is None:
            found = self._shapes[value] = self._shape(value)
        return found

    def _shape(self, value: Value) -> tuple[int, ...]:
        """The least of what each label tensor leaves. Most values have one, along one axis."""
        boxes = []
        for labels in self._parts(value):
            axes = varying(labels)
            if len(axes) == 1:
                left = [self._surviving.of(labels.reshape(-1))[0].numel()]
            else:
                box = _box(self._surviving.keep[labels.numpy()])
                left = [box[axis] for axis in axes]
            boxes.append([left[axes.index(axis)] if axis in axes else size for axis, size in enumerate(value.sizes)])
        return tuple(map(min, *boxes)) if len(boxes) > 1 else tuple(boxes[0]) if boxes else value.sizes

    def groups(self, node: Node) -> int:
        """Count the groups that a convolution has after slicing: as many as channels if it is depthwise, else those that keep any channel."""
        groups, weight = node.attrs.get("group", 1), node.get("weight")
        if weight is None or groups == 1:
            return groups
        if groups == node.input.sizes[channel_axis(node, weight)]:
            return self.shape(node.input)[channel_axis(node, weight)]
        labels = self.labels.axes.get((weight.name, (1, groups)))
        _, positions = (None, None) if labels is None else self._surviving.of(labels)
        return groups if positions is None else _groups_left(positions, weight.sizes[1])

    def constant(self, value: Value) -> Tensor | None:
        """The entries that a value had before slicing, if no input can change them."""
        return self.labels.graph.constant(value)

    def kept(self, value: Value, axis: int) -> Ints | None:
        """Positions along one axis that stay, if that axis alone carries what was removed."""
        stays = self.mask(value)
        if stays is None or axis >= stays.ndim or stays.shape[axis] == 1:
            return None
        along = _slabs(stays, axis)
        return None if bool(along.all()) else np.flatnonzero(along)


def _slabs(stays: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    """Mark the indices along an axis at which any entry stays."""
    return np.asarray(stays.any(tuple(other for other in range(stays.ndim) if other != axis)))


def _box(stays: NDArray[np.bool_]) -> list[int]:
    """The sizes of the box that the surviving entries fill: whole slabs gone along each axis, or equally many from each last row."""
    slabs = [int(_slabs(stays, axis).sum()) for axis in range(stays.ndim)]
    total = int(stays.sum())
    if math.prod(slabs) != total:
        last = max(axis for axis in range(stays.ndim) if stays.shape[axis] > 1)
        slabs[last] = total * slabs[last] // max(math.prod(slabs), 1)
    return slabs


def slice_channels(graph: G, labels: Labels, keep: NDArray[np.bool_], origin: G | None = None) -> Slicing[G]:
    """Slice a graph so that only the channels in `keep` are left, and prove it. No weight is copied yet.

    Args:
        graph: the graph that `labels` was made from; it is not changed.
        labels: the first walk over it.
        keep: whether each label stays, shape (labels,).
        origin: the graph before whole branches were taken out of it, if any were.

    Raises:
        ProofError: the smaller graph does not hold together; the text names the node.
    """
    surviving = Kept(keep)
    new, edited = _smaller_program(graph, labels, surviving)
    replay = Replay(new, before=labels, surviving=surviving)
    replay.run()
    return Slicing(graph, labels, keep, replay.orders, edited, origin, new)


def _smaller_program(graph: G, labels: Labels, surviving: Kept) -> tuple[G, list[str]]:
    """The program with the sizes that are left, its parameters empty, and the names of the nodes whose arguments had to change."""
    try:
        return graph.resized(_parameter_shapes(graph, labels, surviving), _Sizes(labels, surviving))
    except IrtoolError as error:
        raise ProofError(
            f"sizes do not fit after slicing: {error.what}",
            where=error.where,
            remedy="Name the module in ignore=, and please report this model.",
        ) from error


def _parameter_shapes(graph: Graph, labels: Labels, surviving: Kept) -> dict[str, tuple[int, ...]]:
    """Sliced parameter shapes, as far as they differ."""
    shapes: dict[str, tuple[int, ...]] = {}
    for (name, axis), found in labels.axes.items():
        left, positions = surviving.of(found)
        if positions is not None and name in graph.params:
            number, groups = axis if isinstance(axis, tuple) else (axis, 1)
            shape = shapes.get(name) or graph.params[name].sizes
            stay = groups if groups == 1 else _groups_left(positions, graph.params[name].sizes[number])
            shapes[name] = (*shape[:number], left.numel() // max(stay, 1), *shape[number + 1 :])
    return shapes
