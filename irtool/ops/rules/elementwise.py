"""Operators that treat every position alike: operands meet position by position, so their labels are unified."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from irtool.ir.graph import Node, Value
from irtool.ops.rules.context import (
    NONE,
    Context,
    align,
    channel_vector,
    flatten_others,
    is_floating,
    is_none,
    none,
    on_axis,
    says_where,
    varying,
)
from irtool.ops.rules.normalisation import LENGTHS, mix
from irtool.ops.rules.opaque import barrier
from irtool.ops.rules.stretched import follow
from irtool.ops.windows import first_space


def elementwise(node: Node, ctx: Context) -> None:
    """Broadcast the operands' labels and unify them pairwise; parameters are read along the axes that meet a channel."""
    plain = [value for value in node.inputs if not value.is_param]
    if len(node.inputs) == 1 and plain:
        if node.output.sizes != plain[0].sizes:  # `torch.where(x > 0)` lists places
            barrier(node, ctx, f"{node.callee} gives positions of channels")
            return
        for output in node.outputs:
            ctx.put(output, ctx.of(plain[0]))
        return
    rank = len(node.output.sizes)
    for value in plain if len(plain) > 1 else ():
        for other in plain:
            if other is not value and not is_none(ctx.of(other)) and value not in ctx.more and follow(node, ctx, value, ctx.of(other)):
                break
    met, sizes, rows = none(rank), (1,) * rank, _rows(node, rank)
    weights = _weights(node, ctx, plain, rows) if rows else ()
    for value in plain:
        met, sizes = meet(node, ctx, met, sizes, value, none(rank) if value in weights else ctx.of(value))
    for value in node.inputs:
        if value.is_param:
            met, sizes = _meet_param(node, ctx, met, sizes, value, rows)
    for output in node.outputs:
        ctx.put(output, met)


def _rows(node: Node, rank: int) -> set[int]:
    """The axes that a reader adds up: what lies along them are rows (stacked branches), since all of them lose the same channels."""
    return {axis for use in node.output.uses if use.op == "Reduce" and use.attrs["kind"] not in LENGTHS for axis in use.attrs["axes"]}


def _weights(node: Node, ctx: Context, values: Sequence[Value], rows: set[int]) -> list[Value]:
    """The operands that weigh whole rows of another one: their entries are positions, no channels of theirs."""
    rank = len(node.output.sizes)
    along = {value: set(varying(align(ctx.of(value), rank))) for value in values}
    several = set().union(*(axes & rows for axes in along.values() if axes - rows))
    found = [value for value in values if ctx.decide(node, f"{value.name} weighs", bool(along[value]) and along[value] <= rows & several)]
    for value in found:
        ctx.pin(node, ctx.of(value).reshape(-1), "weighs whole branches that are added up")
    return found


def meet(node: Node, ctx: Context, met: Tensor, sizes: tuple[int, ...], value: Value, labels: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Unify one operand with what the operands before it left; returns the merged labels and the broadcast sizes."""
    rank = met.dim()
    labels = align(labels, rank)
    own = (1,) * (rank - len(value.sizes)) + value.sizes
    together = tuple(max(a, b) for a, b in zip(sizes, own, strict=True))
    labels = _drop_single(node, ctx, labels, own, node.output.sizes, value.name)
    if met.numel() == 1 and max(sizes, default=1) == 1 and is_none(met):
        return labels, together  # the first operand meets nothing
    met = _drop_single(node, ctx, met, sizes, together, f"before {value.name}")
    if met.shape == labels.shape and torch.equal(met, labels):
        return met, together
    if met.shape == labels.shape and int(met.numpy().min()) >= 0 and int(labels.numpy().min()) >= 0:
        ctx.unify(node, met.reshape(-1), labels.reshape(-1))
        return met, together
    a, b = torch.broadcast_tensors(met, labels)
    _unify_where(node, ctx, a, b, own, sizes)
    return torch.where(a >= 0, a, b), together


def _drop_single(node: Node, ctx: Context, labels: Tensor, own: tuple[int, ...], out: tuple[int, ...], what: str) -> Tensor:
    """One channel that is broadcast over many (an attention map of one channel) is none of them; it has to stay."""
    broadcast = any(size == 1 and full > 1 for size, full in zip(own[1:], out[1:], strict=True))
    if not ctx.decide(node, f"single {what}", broadcast and labels.numel() == 1 and not is_none(labels)):
        return labels
    ctx.pin(node, labels.reshape(-1), "a single channel that is broadcast over others")
    return none(labels.dim())


def _unify_where(node: Node, ctx: Context, a: Tensor, b: Tensor, b_sizes: tuple[int, ...], a_sizes: tuple[int, ...]) -> None:
    both = (a >= 0) & (b >= 0)
    if bool(both.any()):
        ctx.unify(node, a[both], b[both])
    for labels, other, other_sizes in ((a, b, b_sizes), (b, a, a_sizes)):
        lone = (labels >= 0) & (other < 0)
        axes = varying(labels)
        if axes and other_sizes[axes[-1]] > 1 and bool(lone.any()):
            ctx.unify(node, labels[lone], torch.full((int(lone.sum()),), NONE, dtype=torch.int64))


def _meet_param(
    node: Node, ctx: Context, met: Tensor, sizes: tuple[int, ...], value: Value, rows: set[int]
) -> tuple[Tensor, tuple[int, ...]]:
    rank = met.dim()
    shift = rank - len(value.sizes)
    own = (1,) * shift + value.sizes
    together = tuple(max(a, b) for a, b in zip(sizes, own, strict=True))
    if is_none(met) or (not is_floating(value) and says_where(value)):
        return meet(node, ctx, met, sizes, value, ctx.of(value))
    axes = [axis for axis in varying(met) if own[axis] > 1] or (
        [axis for axis in range(rank) if own[axis] > 1 and sizes[axis] == own[axis]] if met.numel() == 1 else []
    )
    if rows and set(varying(met)) - rows:
        axes = [axis for axis in axes if axis not in rows]
    if ctx.along is not None:  # a temperature for each head beside channels within heads follows none of them
        axes = [axis for axis in axes if axis == ctx.along]
    best = max(axes, key=lambda d: (_distinct(met, d), d)) if axes else None
    for axis in (d for d in range(rank) if ctx.decide(node, f"{value.name} along {d}", d == best)):
        vector = flatten_others(node, ctx, met, axis)
        ctx.read(node, value, axis - shift, vector.expand(own[axis]))
        met = on_axis(vector, axis, rank) if len(varying(met)) > 1 else met
    return met, together


def _distinct(labels: Tensor, axis: int) -> int:
    """Count the labels that differ along an axis: the channel axis of a table of positions and channels is the one with most."""
    return int(torch.unique(labels.movedim(axis, 0).reshape(labels.shape[axis], -1)[:, 0]).numel())


def prelu(node: Node, ctx: Context) -> None:
    """A slope a channel: the parameter's only axis meets axis 1. ONNX's slopes are broadcast instead."""
    if node.attrs.get("broadcast"):
        elementwise(node, ctx)
        return
    value, weight = node.input, node.get("weight") or node.get("other")
    several = weight is not None and weight.is_param and weight.sizes[0] > 1 and len(value.sizes) > 1
    if weight is not None and ctx.decide(node, "slopes", several):
        ctx.read(node, weight, 0, channel_vector(node, ctx, value, 1))
    ctx.put(node.output, ctx.of(value))


def channelwise(node: Node, ctx: Context) -> None:
    """Pooling, resizing and triangles: axes along which labels vary must pass through whole, and no window may slide along them."""
    labels = ctx.of(node.input)
    space = first_space(node, labels.dim())
    for value in node.inputs[1:]:
        if not value.is_param:
            ctx.pin(node, ctx.of(value).reshape(-1), "says where to sample")
    if node.callee == "MaxPool" and any(output.uses for output in node.outputs[1:]):  # ONNX counts them over the whole tensor
        ctx.pin(node, labels.reshape(-1), "MaxPool gives positions over all channels")
    for output in node.outputs:
        kept = labels
        if len(output.sizes) != labels.dim() or any(
            output.sizes[axis] != node.input.sizes[axis] or axis >= space for axis in varying(labels)
        ):
            ctx.pin(node, labels.reshape(-1), f"{node.callee} works along an axis that carries channels")
            kept = none(len(output.sizes))
        ctx.put(output, kept)


def glu(node: Node, ctx: Context) -> None:
    """One half of an axis gates the other: channel i and channel n/2 + i live and die together."""
    labels, axis = ctx.of(node.input), node.attrs["axis"]
    if axis in varying(labels):
        value, gate = labels.chunk(2, axis)
        ctx.unify(node, value.reshape(-1), gate.reshape(-1))
        labels = value
    ctx.put(node.output, labels)


def softmax(node: Node, ctx: Context) -> None:
    """Shares along one axis: exact if the axis carries no channels. Bins of a distribution whose mean is taken stay."""
    labels, axis = ctx.of(node.input), node.attrs["axis"]
    if axis in varying(labels) and _is_averaged(node.output, axis):
        ctx.pin(node, labels.reshape(-1), "bins of a distribution whose mean is taken over fixed numbers")
    elif axis in varying(labels):
        mix(node, ctx, labels, axis, "softmax over channels")
    ctx.put(node.output, labels)


_MOVES = frozenset({"Transpose", "Reshape", "Slice", "Split", "Identity", "Cast", "Gather"})
"""Operators between a softmax and what weighs its shares."""
_WEIGHS = frozenset({"Conv", "Gemm", "MatMul", "Einsum", "Mul"})


def _is_averaged(value: Value, axis: int) -> bool:
    """Whether the shares along an axis are multiplied by stored numbers and added up to one number: the mean of a distribution.

    Box sides (generalised focal loss, arXiv 2006.04388), disparities and depths are read off bins so; a bin less is another mean.
    """
    bins, waiting, seen = value.sizes[axis], [value], set[Value]()
    while waiting:
        value = waiting.pop()
        for use in value.uses:
            if use.op in _MOVES and use.input is value:
                waiting += [output for output in use.outputs if output not in seen]
                seen.update(use.outputs)
            elif use.op in _WEIGHS and _weighs(use, value, bins):
                return True
    return False


def _weighs(node: Node, shares: Value, bins: int) -> bool:
    """Whether an operator multiplies shares by one stored number for each of as many bins, and adds up, or is followed by what does."""
    others = [other for role, other in node.operands.items() if other is not shares and role != "bias"]
    stored = [other.sizes for other in others if _is_fixed(other)]
    if len(stored) != 1 or len(others) != 1 or max(stored[0], default=1) != bins or math.prod(stored[0]) != bins:
        return False
    return node.op != "Mul" or any(use.op == "Reduce" for use in node.output.uses)


def _is_fixed(value: Value) -> bool:
    """Whether a value is stored, or moved or made by operators that read stored values alone."""
    if value.is_param:
        return True
    maker = value.producer
    return maker is not None and maker.op != "Input" and not (maker.op == "Opaque" and maker.inputs) and all(map(_is_fixed, maker.inputs))


def unpool(node: Node, ctx: Context) -> None:
    """Values go back to the positions that a max pool took them from: each channel's positions are its own."""
    labels, index = ctx.of(node.input), node.inputs[1]
    met, _ = meet(node, ctx, labels, node.input.sizes, index, ctx.of(index))
    space = first_space(node, labels.dim())
    if any(axis >= space for axis in varying(met)):
        ctx.pin(node, met.reshape(-1), f"{node.callee} works along an axis that carries channels")
        met = none(labels.dim())
    ctx.put(node.output, met)


def pooled_regions(node: Node, ctx: Context) -> None:
    """Regions of images: as many of them as there are boxes, each with all channels."""
    labels = ctx.of(node.input)
    for value in node.inputs[1:]:
        if not value.is_param:
            ctx.pin(node, ctx.of(value).reshape(-1), "says where to sample")
    if any(axis != 1 for axis in varying(labels)):
        ctx.pin(node, labels.reshape(-1), f"{node.callee} works along an axis that carries channels")
        labels = none(labels.dim())
    ctx.put(node.output, labels)


def fourier(node: Node, ctx: Context) -> None:
    """A Fourier transform mixes all entries of the axes that it works along, and leaves the others apart."""
    labels = ctx.of(node.input)
    if any(axis in node.attrs["axes"] for axis in varying(labels)):
        ctx.pin(node, labels.reshape(-1), f"{node.callee} works along an axis that carries channels")
        labels = none(labels.dim())
    ctx.put(node.output, labels)


def complex_view(node: Node, ctx: Context) -> None:
    """Complex numbers as pairs on a last axis of their own, or the other way round."""
    labels = ctx.of(node.input)
    if len(node.output.sizes) > labels.dim():
        ctx.put(node.output, labels.unsqueeze(-1))
        return
    if labels.shape[-1] > 1:
        ctx.pin(node, labels.reshape(-1), f"{node.callee} works along an axis that carries channels")
        labels = none(labels.dim())
    ctx.put(node.output, labels.squeeze(-1))
