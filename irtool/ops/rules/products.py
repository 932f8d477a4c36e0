"""Values whose entries are products of channels, and weights that are computed in the graph.

`k^T v` over tokens has channels along both its axes, and so has a weight on its way from a parameter to a convolution:
an entry stays if the channel of each of its axes stays. Such a value has several label tensors (parts), each along one
independent set of axes, and a rule that moves or maps entries one by one is applied to each part by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from irtool.ir.graph import Node, Value
from irtool.ops.rules.context import NONE, Axis, Context, Rule, align, is_none, is_stored, none, varying
from irtool.ops.rules.opaque import barrier

WHOLE = frozenset({"MatMul", "Conv", "ConvTranspose", "Gemm", "Einsum", "Output", "QuantizePerChannel"})
"""Operators whose rules look at all parts themselves."""
BY_INPUT = frozenset(
    "Transpose Split Slice Gather Expand Roll Reshape Pad Reduce Softmax BatchNormalization LayerNormalization RMSNormalization "
    "LpNormalization Cumsum Resize Pool Trilu Fourier Im2Col Col2Im ViewAsReal".split()
)
"""Operators on one value: parts are those of the first input."""
JOINING = frozenset({"Concat", "Stack"})


def by_parts(rule: Rule, joins: Callable[[str], bool]) -> Rule:
    """A rule that is applied once to each part where a value has several.

    Args:
        rule: the operator's rule.
        joins: whether an operator of this name lets several values meet entry by entry.
    """

    def applied(node: Node, ctx: Context) -> None:
        inputs = node.inputs
        constant = node.op != "Input" and all(value.is_param or ctx.is_constant(value) for value in inputs)
        if not constant and not ctx.more:
            rule(node, ctx)
            return
        several = any(len(ctx.parts(value)) > 1 for value in inputs if constant or not value.is_param)
        if not several or node.op in WHOLE:
            rule(node, ctx)
        elif _looks_up(node):
            _rows(node, ctx) if constant and _is_rows(node) else rule(node, ctx)
        elif node.op in BY_INPUT:
            _each_part(node, ctx, rule)
        elif joins(node.op) or node.op in JOINING:
            _each_axis(node, ctx, rule, constant)
        else:
            for value in node.inputs:
                if not value.is_param:
                    for labels in ctx.parts(value):
                        ctx.pin(node, labels.reshape(-1), f"{node.callee} reads a product of channels")
            barrier(node, ctx, f"{node.callee} reads a product of channels")
        if constant:
            for output in node.outputs:
                ctx.mark_constant(output)

    return applied


def _looks_up(node: Node) -> bool:
    """Whether rows of a table are fetched by an index tensor: they are positions, no channels."""
    return node.op in ("Gather", "Slice") and len(node.inputs) > 1


def _is_rows(node: Node) -> bool:
    """Whether the index picks along axis 0 and nothing else."""
    value, index = node.inputs[0], node.inputs[1]
    return len(node.inputs) == 2 and node.attrs.get("axis", 0) == 0 and node.output.sizes == index.sizes + value.sizes[1:]


def _rows(node: Node, ctx: Context) -> None:
    """Rows of a table, fetched by number: each holds the channels that all rows hold, and which rows there are stays."""
    kept, lead = [], len(node.inputs[1].sizes)
    if not node.inputs[1].is_param:
        ctx.pin(node, ctx.of(node.inputs[1]).reshape(-1), "says which rows to take")
    for number, labels in enumerate(ctx.parts(node.input)):
        if ctx.decide(node, f"rows {number}", 0 in varying(labels)):
            ctx.pin(node, labels.reshape(-1), "a table's rows are looked up by number")
        else:
            kept.append(labels.reshape((1,) * lead + tuple(labels.shape[1:])))
    ctx.put_parts(node.output, kept or [none(len(node.output.sizes))])


def _each_part(node: Node, ctx: Context, rule: Rule) -> None:
    value = node.input
    views = []
    for number, labels in enumerate(ctx.parts(value)):
        view = _Part(ctx, f"part {number}", {value: labels})
        rule(node, view)
        views.append(view)
    _finish(node, ctx, views)


def _each_axis(node: Node, ctx: Context, rule: Rule, constant: bool) -> None:
    """Parts of several operands belong together if they lie along the same last axis."""
    rank = len(node.output.sizes)
    values = [value for value in node.inputs if constant or not value.is_param]
    slots: dict[int, dict[Value, Tensor]] = {}
    for value in values:
        for number, labels in enumerate(ctx.parts(value)):
            placed = align(labels, rank) if node.op != "Stack" else labels
            last = varying(placed)[-1:] or [-1]
            for axis in range(placed.dim()):
                if ctx.decide(node, f"{value.name} part {number} at {axis}", axis == last[0]):
                    slot = slots.setdefault(axis, {})
                    if value in slot:
                        ctx.pin(node, labels.reshape(-1), "two channels along one axis")
                    slot.setdefault(value, labels)
    views = []
    for axis in sorted(slots):
        slot = slots[axis]
        if not constant and _meets_positions(node, ctx, slot, axis, rank):
            for labels in slot.values():
                ctx.pin(node, labels.reshape(-1), "meets positions that are no channels")
            continue
        view = _Part(ctx, f"axis {axis}", {value: slot.get(value, none(len(value.sizes))) for value in values}, axis)
        rule(node, view)
        views.append(view)
    _finish(node, ctx, views)


def _meets_positions(node: Node, ctx: Context, slot: Mapping[Value, Tensor], axis: int, rank: int) -> bool:
    """Whether labels meet entries along their axis that are no channels: a table's rows beside tokens."""
    active = [value for value in node.inputs if not value.is_param and not ctx.is_constant(value)]
    if not any(value in slot and not is_none(slot[value]) for value in active):
        return True
    return node.op not in JOINING and any(value not in slot and _size(value, axis, rank) > 1 for value in node.inputs if not value.is_param)


def _size(value: Value, axis: int, rank: int) -> int:
    return ((1,) * (rank - len(value.sizes)) + value.sizes)[axis]


def _finish(node: Node, ctx: Context, views: Sequence[_Part]) -> None:
    for view in views:  # a parameter along an axis that no part touches
        for value, axis, arriving in view.idle:
            if not any((value.name, axis) in other.seen for other in views):
                ctx.read(node, value, axis, arriving)
                view.seen.add((value.name, axis))
    for output in node.outputs:
        parts = [view.results[output] for view in views if output in view.results]
        ctx.put_parts(output, [labels for labels in parts if not is_none(labels)] or [none(len(output.sizes))])


class _Part:
    """A context in which values have the labels of one part."""

    def __init__(self, ctx: Context, name: str, labels: Mapping[Value, Tensor], along: int | None = None) -> None:
        self._ctx, self._name, self._labels, self.along = ctx, name, labels, along
        self.results: dict[Value, Tensor] = {}
        self.idle: list[tuple[Value, Axis, Tensor]] = []
        self.seen: set[tuple[str, Axis]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)

    def of(self, value: Value) -> Tensor:
        """This part's labels."""
        if value in self.results:
            return self.results[value]
        return self._labels[value] if value in self._labels else self._ctx.of(value)

    def put(self, value: Value, labels: Tensor) -> None:
        """Kept until all parts are through."""
        assert labels.dim() == len(value.sizes), f"{value.name}: labels of rank {labels.dim()} for {value.sizes}"
        self.results[value] = labels

    def read(self, node: Node, value: Value, axis: Axis, arriving: Tensor) -> None:
        """Another part may be the one that lies along the axis: readings without channels wait."""
        if is_none(arriving):
            self.idle.append((value, axis, arriving))
            return
        self.seen.add((value.name, axis))
        self._ctx.read(node, value, axis, arriving)

    def decide(self, node: Node, key: str, value: bool) -> bool:
        """Each part decides for itself."""
        return self._ctx.decide(node, f"{self._name}: {key}", value)


# Products


def matmul_parts(node: Node, ctx: Context, a: Value, b: Value) -> None:
    """(..., n, k) @ (..., k, m): labels along k are unified pairwise; those along n and m are the result's, each by itself.

    Labels along the leading axes alone (a map of attention heads) stay, since each head weighs many channels at once.
    """
    rank = len(node.output.sizes)
    left, right = _roles(node, ctx, a, rank, "left"), _roles(node, ctx, b, rank, "right")
    _meet_inner(node, ctx, left["inner"], right["inner"])
    for labels in (*left["inner"], *right["inner"]) if a.is_param and b.is_param else ():
        ctx.pin(node, labels.reshape(-1), "a sum over stored channels")
    kept = [*_outer(node, ctx, left["rows"], a, b), *_outer(node, ctx, right["columns"], b, a)]
    batch = left["batch"] + right["batch"]
    if batch and not kept and len(left["batch"]) == len(right["batch"]) == 1:
        x, y = torch.broadcast_tensors(*batch)
        ctx.unify(node, x.reshape(-1), y.reshape(-1))
        kept = [batch[0]]
    elif batch and ctx.decide(node, "one for all", _is_for_all(batch, b if left["batch"] else a, kept or left["inner"] or right["inner"])):
        kept = batch
    elif batch:
        for labels in batch:
            ctx.pin(node, labels.reshape(-1), "weighs several channels at once")
    ctx.put_parts(node.output, kept or [none(rank)])


def _is_for_all(batch: list[Tensor], other: Value, besides: list[Tensor]) -> bool:
    """Whether the other factor is one matrix for all channels, which lie along a leading axis: each passes through by itself."""
    labels, rank = batch[0], batch[0].dim()
    sizes = (1,) * (rank - len(other.sizes)) + other.sizes
    return len(batch) == 1 and not besides and all(sizes[axis] == 1 for axis in varying(labels))


_STAYS = {"both": "a product of two axes that both carry one set of channels", "alone": "a single channel that is broadcast over others"}
"""Places where a factor's channels cannot be told apart."""


def _roles(node: Node, ctx: Context, value: Value, rank: int, side: str) -> dict[str, list[Tensor]]:
    """The parts of a factor by where they lie: on the summed axis, on the factor's own axis, or on the leading axes."""
    inner, own = (rank - 1, rank - 2) if side == "left" else (rank - 2, rank - 1)
    found: dict[str, list[Tensor]] = {name: [] for name in ("inner", "rows", "columns", "batch", *_STAYS)}
    for number, part in enumerate(ctx.parts(value)):
        labels = align(part, rank)
        axes = varying(labels)
        places = {  # the first that holds is the part's role
            "both": inner in axes and own in axes,
            "inner": inner in axes,
            "rows" if side == "left" else "columns": own in axes,
            "batch": bool(axes),
            "alone": not is_none(labels),
        }
        role = next((name for name, lies in places.items() if ctx.decide(node, f"{side} {number} {name}", lies)), None)
        if role is not None:
            found[role].append(labels)
            if role != "batch":
                heads_stay(node, ctx, labels)
    for role, reason in _STAYS.items():
        for labels in found[role]:
            ctx.pin(node, labels.reshape(-1), reason)
    return found


def heads_stay(node: Node, ctx: Context, labels: Tensor) -> None:
    """Labels within heads: the other factor and the result have these heads, too, but no channels along them."""
    heads = math.prod(labels.shape[:-2])
    if heads > 1:
        ctx.balance(node, labels.reshape(heads, -1))


def _meet_inner(node: Node, ctx: Context, left: list[Tensor], right: list[Tensor]) -> None:
    if not left and not right:
        return
    if len(left) > 1 or len(right) > 1:
        matched = meeting(node, ctx, left, right)
        if matched is not None:
            _meet_inner(node, ctx, [left[matched[0]]], [right[matched[1]]])
            return
        for labels in left + right:
            ctx.pin(node, labels.reshape(-1), "a product over an axis that carries two channels")
        return
    x = left[0].transpose(-1, -2) if left else None
    y = right[0] if right else None
    if x is None or y is None:
        lone = x if y is None else y
        assert lone is not None
        ctx.unify(node, lone.reshape(-1), torch.full((lone.numel(),), NONE, dtype=torch.int64))
        return
    x, y = torch.broadcast_tensors(x, y)
    ctx.unify(node, x.reshape(-1), y.reshape(-1))


def meeting(node: Node, ctx: Context, left: Sequence[Tensor], right: Sequence[Tensor]) -> tuple[int, int] | None:
    """Find which of several parts along an axis meets the one of the other factor: that in which the same entries are alike.

    The parts beside it are no channels, such as the taps of a kernel that was flattened with its channels, and stay.
    """
    if min(len(left), len(right)) != 1:
        return None
    several, (one,) = (left, right) if len(left) > 1 else (right, left)
    for number, part in enumerate(several):
        if ctx.decide(node, f"part {number} of {len(several)} meets", torch.equal(_pattern(part), _pattern(one))):
            for other in several:
                if other is not part:
                    ctx.pin(node, other.reshape(-1), "lies beside channels along one axis")
            return (number, 0) if len(left) > 1 else (0, number)
    return None


def _pattern(labels: Tensor) -> Tensor:
    """Numbers of the labels in the order in which they appear."""
    _, places, numbers = np.unique(labels.numpy().reshape(-1), return_index=True, return_inverse=True)
    return torch.from_numpy(places[numbers.reshape(-1)])


def _outer(node: Node, ctx: Context, parts: list[Tensor], value: Value, other: Value) -> list[Tensor]:
    """Labels that pass on to the result. Rows of a table that meets activations are positions."""
    table = is_stored(value, ctx) and not is_stored(other, ctx)
    if table:
        for labels in parts:
            ctx.pin(node, labels.reshape(-1), "a table's positions are no channels")
        return []
    return parts


def source_of(node: Node, ctx: Context, weight: Value, labels: Tensor) -> tuple[Value, int] | None:
    """The parameter and axis that a computed weight's output labels come from: what makes the channels, whole or a slice of it."""
    waiting, seen = [weight], set()
    sliced: list[tuple[Value, int]] = []
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        if not value.is_param:
            waiting += value.producer.inputs if value.producer is not None else ()
            continue
        axes = [axis for axis, size in enumerate(value.sizes) if size > 1]
        for axis in axes if value.dtype is not None and value.dtype.is_floating_point and len(axes) > 1 else ():
            held = ctx.param(value, axis)
            if ctx.decide(node, f"made by {value.name} {axis}", value.sizes[axis] == labels.numel() and torch.equal(held, labels)):
                return value, axis
            if ctx.decide(node, f"a slice of {value.name} {axis}", bool((labels >= 0).all()) and bool(torch.isin(labels, held).all())):
                sliced.append((value, axis))
    if not sliced:
        return None
    ctx.floor(labels)
    return sliced[0]
