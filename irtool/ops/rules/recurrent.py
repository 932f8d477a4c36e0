"""Recurrent layers: the features that arrive are channels like any others, the states are tied together by the gates."""

from __future__ import annotations

from irtool.ir.graph import Node
from irtool.ops.rules.context import Context, channel_vector, none, varying
from irtool.ops.rules.opaque import barrier

_FIRST = ("weight_ih_l0", "weight_ih_l0_reverse")


def recurrent(node: Node, ctx: Context) -> None:
    """torch's LSTM, GRU and RNN: the first layer's weights read what arrives; what leaves are states, which stay."""
    value = node.input
    weights = [node.operands[role] for role in _FIRST if role in node.operands]
    others = [other for other in node.inputs[1:] if not other.is_param]
    if not weights or others or any(axis != len(value.sizes) - 1 for axis in varying(ctx.of(value))):
        barrier(node, ctx)
        return
    arriving = channel_vector(node, ctx, value, len(value.sizes) - 1)
    for weight in weights:
        ctx.read(node, weight, 1, arriving)
    for output in node.outputs:
        ctx.put(output, none(len(output.sizes)))
