"""Values that were copied along an axis of size 1, and go with the channels that they meet there."""

from __future__ import annotations

from torch import Tensor

from irtool.ir.graph import Node, Value
from irtool.ops.properties import BY_ENTRY
from irtool.ops.rules.context import Context, align, is_none, varying
from irtool.ops.rules.opaque import short_name

_COPIES = frozenset({"expand", "expand_as", "broadcast_to", "repeat"})


def follow(node: Node, ctx: Context, value: Value, labels: Tensor) -> bool:
    """Whether a value is made of copies along the axes that `labels` vary along (`map.expand(-1, channels, -1, -1)`).

    It then has these labels from where it was stretched on, and is stretched to as many as stay. The value lacks labels of its own, and
    nobody else reads it.
    """
    chain = _stretched(value)
    axes = varying(align(labels, len(value.sizes))) if labels.dim() <= len(value.sizes) else []
    free = chain and all(_is_copied(chain[-1], axis) and value.sizes[axis] == labels.shape[axis - len(value.sizes)] for axis in axes)
    if not ctx.decide(node, f"{value.name} follows", bool(free and axes) and is_none(ctx.of(value))):
        return False
    for link in chain:
        ctx.put(link, align(labels, len(value.sizes)))
    return True


def _stretched(value: Value) -> list[Value]:
    """The value and those that it is computed from entry by entry, back to the one that was stretched; empty if none was."""
    chain = [value]
    while True:
        maker = chain[-1].producer
        if maker is None or len(chain[-1].uses) != 1:
            return []
        if maker.op == "Expand" and short_name(maker.callee) in _COPIES:
            return chain
        if maker.op not in BY_ENTRY or len(maker.inputs) != 1 or maker.input.is_param or maker.input.sizes != maker.output.sizes:
            return []
        chain.append(maker.input)


def _is_copied(value: Value, axis: int) -> bool:
    """Whether an axis of what was stretched is one of copies."""
    assert value.producer is not None
    source = value.producer.input
    place = axis - (len(value.sizes) - len(source.sizes))
    return not source.is_param and (place < 0 or source.sizes[place] == 1)
