"""The labelling engine as rules of operators see it, and the arithmetic on label tensors.

A label tensor has the rank of its value; an axis of size 1 stands for any number of equal entries (broadcast), and -1
means "no channel here". The same rules serve two walks: the first gives every parameter axis fresh labels and
collects which labels must agree, the second replays the graph after slicing and checks that they still do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from irtool.ir.graph import Node, Value

NONE = -1
Axis = int | tuple[int, int]
"""A parameter axis: its number, or (number, groups) for the input axis of a grouped convolution."""


class Context(Protocol):
    """The engine, as seen by an operator's rule."""

    more: Mapping[Value, tuple[Tensor, ...]]
    """The second and further parts of the values that have several."""
    along: int | None
    """The axis along which the labels lie that a rule is shown, where it is shown a part of a product; else None."""

    def of(self, value: Value) -> Tensor:
        """The labels of a value, of its rank."""

    def put(self, value: Value, labels: Tensor) -> None:
        """Set the labels of a node's output."""

    def parts(self, value: Value) -> tuple[Tensor, ...]:
        """All label tensors of a value: several where an entry is a product of channels (it stays if each of them does)."""

    def is_constant(self, value: Value) -> bool:
        """Whether a node's output is computed from parameters and constants alone."""

    def mark_constant(self, value: Value) -> None:
        """Say so."""

    def put_parts(self, value: Value, parts: Sequence[Tensor]) -> None:
        """`put` for a value of several label tensors."""

    def unify(self, node: Node, a: Tensor, b: Tensor) -> None:
        """Labels `a[i]` and `b[i]` meet: they live and die together. -1 on one side pins the other."""

    def param(self, value: Value, axis: Axis) -> Tensor:
        """The labels along a parameter's axis, in the order of its entries."""

    def produce(self, node: Node, value: Value, axis: Axis) -> Tensor:
        """The labels of an output axis: `param`, and note that the node makes these channels."""

    def read(self, node: Node, value: Value, axis: Axis, arriving: Tensor) -> None:
        """`arriving[i]` meets entry i of a parameter's axis."""

    def fresh(self, node: Node, count: int) -> Tensor:
        """Labels of channels that a node itself makes (padding)."""

    def pin(self, node: Node, labels: Tensor, reason: str) -> None:
        """These channels must stay, for this reason."""

    def computed(self, value: Value, reader: Node | None = None, reason: str = "") -> None:
        """Every axis of this parameter must stay: `reader`, by default its first reader, does not say how it reads it."""

    def balance(self, node: Node, table: Tensor) -> None:
        """Each row of the table must lose equally many channels."""

    def box(self, node: Node, table: Tensor) -> None:
        """The channels that stay must fill a box of the table's rank (an axis was split in several)."""

    def tie(self, node: Node, source: Tensor, copies: Tensor) -> None:
        """Removing source[i] removes copies[i], not the other way round."""

    def floor(self, labels: Tensor) -> None:
        """At least one of these channels must stay."""

    def inexact(self, node: Node, table: Tensor, why: str) -> None:
        """Removing some but not all labels of a row (along the last axis) changes what the node computes from the others."""

    def decide(self, node: Node, key: str, value: bool) -> bool:
        """A choice made on the first walk from sizes, and remembered on the second."""

    def evaluate(self, node: Node, values: Mapping[Value, Tensor]) -> Sequence[Tensor]:
        """Run the node's own operator on labels."""


Rule = Callable[[Node, Context], None]


def is_floating(value: Value) -> bool:
    """Whether a value holds real numbers."""
    return value.dtype is not None and value.dtype.is_floating_point


def is_stored(value: Value, ctx: Context) -> bool:
    """Whether a value is a parameter, or computed from parameters and constants alone."""
    return value.is_param or ctx.is_constant(value)


def says_where(value: Value) -> bool:
    """Whether somebody takes a value for an index: its numbers are places among channels, which change as channels go."""
    looked_up = any(use.op in ("Gather", "Slice") and use.input is not value for use in value.uses)
    return looked_up or any(use.op == "Embedding" and use.get("weight") is not value for use in value.uses)


def none(rank: int) -> Tensor:
    """The labels of a value without channels."""
    return torch.full((1,) * rank, NONE, dtype=torch.int64)


def is_none(labels: Tensor) -> bool:
    """Whether no entry is a channel. Values without channels are kept collapsed, so this looks at one entry mostly."""
    entries = labels.numpy()
    return not entries.size or (int(entries.flat[0]) < 0 and (entries.size == 1 or bool(entries.max() < 0)))


def varying(labels: Tensor) -> list[int]:
    """The axes along which labels differ."""
    return [axis for axis, size in enumerate(labels.shape) if size > 1]


def align(labels: Tensor, rank: int) -> Tensor:
    """Prepend axes of size 1, as broadcasting does."""
    return labels.reshape((1,) * (rank - labels.dim()) + tuple(labels.shape)) if labels.dim() < rank else labels


def place(labels: Tensor) -> tuple[int, int, int]:
    """Identify a label vector by its memory: as long as it is held, whatever lies there is the same vector."""
    return labels.data_ptr(), labels.numel(), labels.stride(0)


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two label vectors are equal; seen at once where both are views of one."""
    return a is b or place(a) == place(b) or torch.equal(a, b)


def expand(labels: Tensor, shape: Sequence[int]) -> Tensor:
    """Stretch broadcast axes to their real size, without copying."""
    return labels.expand(tuple(shape))


def collapse(labels: Tensor) -> Tensor:
    """Shrink every axis along which nothing changes to size 1. Stretched axes go first, so that the rest is small."""
    for axis, (size, stride) in enumerate(zip(labels.shape, labels.stride(), strict=True)):
        if size > 1 and stride == 0:
            labels = labels.narrow(axis, 0, 1)
    entries = labels.numpy()
    for axis, size in enumerate(entries.shape):
        if size > 1:
            head = entries[(slice(None),) * axis + (slice(0, 1),)]
            if (entries == head).all():
                entries = head
    return torch.from_numpy(np.ascontiguousarray(entries).reshape(entries.shape))


def on_axis(vector: Tensor, axis: int, rank: int) -> Tensor:
    """A vector laid along one axis of a label tensor."""
    shape = [1] * rank
    shape[axis] = vector.numel()
    return vector.reshape(shape)


def flatten_others(node: Node, ctx: Context, labels: Tensor, axis: int) -> Tensor:
    """One label for each entry of an axis; entries that differ along other axes are unified."""
    if labels.numel() == labels.shape[axis]:
        return labels.reshape(-1)
    table = labels.movedim(axis, 0).reshape(labels.shape[axis], -1)
    if table.shape[1] > 1:
        ctx.unify(node, table[:, :1].expand(-1, table.shape[1] - 1).reshape(-1), table[:, 1:].reshape(-1))
    return table[:, 0]


def channel_vector(node: Node, ctx: Context, value: Value, axis: int) -> Tensor:
    """The labels that arrive along one axis, one each; entries that differ along other axes are unified.

    Labels that vary along other axes alone are no channels of this axis: the result is -1 throughout.
    """
    labels, size = ctx.of(value), value.sizes[axis]
    if labels.shape[axis] == 1 and size > 1:
        entry = labels.reshape(-1)
        return entry.expand(size) if entry.numel() == 1 else torch.full((size,), NONE, dtype=torch.int64)
    return flatten_others(node, ctx, labels, axis)
