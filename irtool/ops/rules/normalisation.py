"""Normalisation and reduction: per channel it is exact, across channels a removal shifts the statistics."""

from __future__ import annotations

import torch
from torch import Tensor

from irtool.ir.graph import Node
from irtool.ops.rules.context import NONE, Context, channel_vector, flatten_others, is_none, is_stored, none, on_axis, varying
from irtool.ops.windows import first_space

_PARAMETERS = ("weight", "bias", "running_mean", "running_var")


def per_channel(node: Node, ctx: Context) -> None:
    """Batch and instance norm: one scale, shift and statistic a channel of axis 1, or of axis 0 where an instance norm has no batch."""
    labels, instance = ctx.of(node.input), node.op == "InstanceNormalization"
    space = first_space(node, labels.dim()) if instance else 2
    channels = space - 1
    if ctx.decide(node, "positions", labels.shape[channels] == 1 and labels.numel() > 1):
        last = varying(labels)[-1]
        if _takes_statistics(node) and (last >= space or not instance):
            ctx.inexact(node, labels.movedim(last, -1), "normalises over channels")
        ctx.put(node.output, labels)
        return
    arriving = channel_vector(node, ctx, node.input, channels)
    for role in _PARAMETERS:
        parameter = node.get(role)
        if parameter is not None and parameter.is_param:
            ctx.read(node, parameter, 0, arriving)
        elif parameter is not None:
            ctx.unify(node, channel_vector(node, ctx, parameter, 0), arriving)
    single = labels.numel() == 1 or varying(labels) == [channels]
    ctx.put(node.output, labels if single else on_axis(arriving, channels, labels.dim()))


def _takes_statistics(node: Node) -> bool:
    """Whether a norm measures what flows in, rather than to use what it has stored."""
    own = node.op == "InstanceNormalization" and node.attrs.get("use_input_stats", True)
    return node.get("running_mean") is None or own or bool(node.attrs.get("training_mode"))


def over_last_axes(node: Node, ctx: Context) -> None:
    """Layer norm and RMS norm over the last axes."""
    labels = ctx.of(node.input)
    rank, depth = labels.dim(), -node.attrs["axis"]
    found = [axis for axis in varying(labels) if axis >= rank - depth]
    axes = [axis for axis in range(rank) if ctx.decide(node, f"over {axis}", axis in found)]
    if axes:
        ctx.inexact(node, labels.flatten(rank - depth), "normalises over channels")
    for role in _PARAMETERS[:2]:
        parameter = node.get(role)
        if parameter is None or not parameter.is_param:
            continue
        if len(axes) > 1:
            ctx.pin(node, labels.reshape(-1), f"{node.callee} has a parameter along several axes that carry channels")
        elif axes:
            ctx.read(node, parameter, axes[0] - (rank - depth), channel_vector(node, ctx, node.input, axes[0]))
        elif depth == 1:
            ctx.read(node, parameter, 0, channel_vector(node, ctx, node.input, rank - 1))
    ctx.put(node.output, labels)
    for output in node.outputs[1:]:  # statistics that nobody reads
        ctx.put(output, none(len(output.sizes)))


def group_norm(node: Node, ctx: Context) -> None:
    """Statistics over each group of channels; the groups must lose equally many, so that membership stays."""
    arriving = channel_vector(node, ctx, node.input, 1)
    groups = node.attrs["num_groups"]
    alone = ctx.decide(node, "per_channel", groups == arriving.numel())
    if not is_none(arriving) and not alone:
        ctx.inexact(node, arriving.reshape(groups, -1), "normalises over groups of channels")
        if groups > 1:
            ctx.balance(node, arriving.reshape(groups, -1))
    for role in _PARAMETERS[:2]:
        parameter = node.get(role)
        if parameter is not None and parameter.is_param:
            ctx.read(node, parameter, 0, arriving)
    ctx.put(node.output, on_axis(arriving, 1, len(node.output.sizes)) if not is_none(arriving) else none(len(node.output.sizes)))


def quantise_channels(node: Node, ctx: Context) -> None:
    """QuantizeLinear and DequantizeLinear with a scale and a zero point for each entry of one axis, weights or what flows."""
    axis, parts = node.attrs["axis"], ctx.parts(node.input)
    arriving = torch.full((node.input.sizes[axis],), NONE, dtype=torch.int64)
    for number, labels in enumerate(parts):
        if ctx.decide(node, f"part {number}", labels.shape[axis] > 1):
            arriving = flatten_others(node, ctx, labels, axis)
    for role in ("scale", "zero_point"):
        parameter = node.get(role)
        if parameter is not None:
            ctx.read(node, parameter, 0, arriving)
    ctx.put_parts(node.output, parts)


def across_channels(node: Node, ctx: Context) -> None:
    """Operators of unchanged shape that mix neighbouring channels (local response norm, cumulative sums, L2 normalisation)."""
    labels, axis = ctx.of(node.input), node.attrs.get("axis", 1)
    if axis in varying(labels):
        mix(node, ctx, labels, axis, f"{node.callee} over channels")
    ctx.put(node.output, labels)


def mix(node: Node, ctx: Context, labels: Tensor, axis: int, why: str) -> None:
    """Note that a node mixes the entries of one axis.

    Where the axis was split off a longer one, and channels lie along a later axis too, those that are mixed go together: rows
    that lost channels of their own would bring together what never met.
    """
    last = varying(labels)[-1]
    if axis == last:
        ctx.inexact(node, labels.movedim(axis, -1), why)
        return
    first = labels.narrow(axis, 0, 1)
    ctx.unify(node, first.expand(labels.shape).reshape(-1), labels.reshape(-1))


LENGTHS = frozenset({"norm", "l1", "l2"})
"""Reductions that give the length of a vector."""


def reduce(node: Node, ctx: Context) -> None:
    """Sums, means and extrema over some axes; labels along a reduced axis end here."""
    labels = ctx.of(node.input)
    rank = labels.dim()
    axes = set(node.attrs["axes"])
    over = [axis for axis in varying(labels) if axis in axes]
    alone = ctx.decide(node, "alone", bool(over) and len(over) == len(varying(labels)))
    name = node.attrs["kind"]
    within = name in LENGTHS and bool(over) and not alone and over == varying(labels)[-1:]
    if ctx.decide(node, "within", within):  # the length of each head's vector: a number a head
        ctx.inexact(node, labels.movedim(over[-1], -1), f"{name} over channels")
        ctx.balance(node, labels.movedim(over[-1], -1).reshape(-1, labels.shape[over[-1]]))
        labels, over = none(rank), []
    if alone and (name != "sum" or is_stored(node.input, ctx)):  # what is stored is not zero where a channel is removed
        ctx.inexact(node, labels.reshape(-1), f"{name} over channels")
    if alone and _gives_positions(node, name):
        ctx.pin(node, labels.reshape(-1), f"{name} gives positions of channels")
    if alone:
        labels = none(rank)
    elif over:  # the channels of other axes are added up, each with its like: a sum over stacked branches
        labels = _merge(node, ctx, labels, over)
    for output in node.outputs:
        ctx.put(output, _drop_axes(labels, axes, len(output.sizes)))


def _gives_positions(node: Node, name: str) -> bool:
    """Whether somebody reads where an extremum lies: a number that is another one once channels are gone."""
    return name in ("argmax", "argmin") or (name in ("max", "min", "median") and len(node.outputs) > 1 and bool(node.outputs[1].uses))


def _merge(node: Node, ctx: Context, labels: Tensor, over: list[int]) -> Tensor:
    first = labels
    for axis in over:
        first = first.narrow(axis, 0, 1)
    ctx.unify(node, first.expand(labels.shape).reshape(-1), labels.reshape(-1))
    return first


def _drop_axes(labels: Tensor, axes: set[int], rank: int) -> Tensor:
    if labels.dim() == rank:
        return labels
    kept = [size for axis, size in enumerate(labels.shape) if axis not in axes]
    return labels.reshape(kept) if len(kept) == rank else none(rank)
