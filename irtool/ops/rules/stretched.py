"""Values that were copied along an axis of size 1, or are one number everywhere: they go with the channels that they meet there."""

from __future__ import annotations

from torch import Tensor

from irtool.ir.graph import Node, Value
from irtool.ops.properties import BY_ENTRY
from irtool.ops.rules.context import Context, align, is_none, varying
from irtool.ops.rules.opaque import short_name

_COPIES = frozenset({"expand", "expand_as", "broadcast_to", "repeat"})
_FILLED = frozenset({"zeros", "ones", "full", "new_zeros", "new_ones", "new_full"})
"""Factories of one number everywhere, whose sizes are written into the program or follow from another tensor's."""


def follow(node: Node, ctx: Context, value: Value, labels: Tensor) -> bool:
    """Whether a value is made of copies along the axes that `labels` vary along (`map.expand(-1, channels, -1, -1)`, `torch.zeros(n, channels, h, w)`).

    It then has these labels from where it was stretched on, and is stretched to as many as stay. The value lacks labels of its own, and
    nobody else reads it.
    """
    chain, lead = _stretched(value), labels.dim() - len(value.sizes)
    if lead > 0 and max(labels.shape[:lead]) == 1:  # of lower rank
        labels = labels.reshape(labels.shape[lead:])
    axes = varying(align(labels, len(value.sizes))) if labels.dim() <= len(value.sizes) else []
    free = chain and all(_is_copied(chain[-1], axis) and value.sizes[axis] == labels.shape[axis - len(value.sizes)] for axis in axes)
    if not ctx.decide(node, f"{value.name} follows", bool(free and axes) and is_none(ctx.of(value))):
        return False
    for link in chain:
        ctx.put(link, align(labels, len(value.sizes)))
    return True


def _stretched(value: Value) -> list[Value]:
    """The value and those that it is computed from entry by entry, back to the one that was stretched or filled; empty if none was."""
    chain = [value]
    while True:
        maker = chain[-1].producer
        if maker is None or len(chain[-1].uses) != 1:
            return []
        if short_name(maker.callee) in {"Expand": _COPIES, "Constant": _FILLED}.get(maker.op, ()):
            return chain
        if maker.op not in BY_ENTRY or len(maker.inputs) != 1 or maker.input.is_param or maker.input.sizes != maker.output.sizes:
            return []
        chain.append(maker.input)


def _is_copied(value: Value, axis: int) -> bool:
    """Whether an axis of what was stretched is one of copies."""
    assert value.producer is not None
    if value.producer.op == "Constant":
        return True
    source = value.producer.input
    place = axis - (len(value.sizes) - len(source.sizes))
    return not source.is_param and (place < 0 or source.sizes[place] == 1)
