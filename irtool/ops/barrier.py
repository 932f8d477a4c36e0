"""What irtool does not understand, it leaves alone, and says so."""

from __future__ import annotations

from irtool.ir.graph import Node
from irtool.ops.context import Context, none

REASONS = {
    "LSTM": "a recurrent layer ties its gates together",
    "GRU": "a recurrent layer ties its gates together",
    "RNN": "a recurrent layer ties its gates together",
}


def barrier(node: Node, ctx: Context, reason: str | None = None) -> None:
    """Pin every channel that flows in; nothing that flows out is a channel."""
    why = reason or REASONS.get(node.callee) or f"flows into {node.callee}, which irtool does not know"
    for value in node.inputs:
        if value.shape is not None:
            ctx.pin(node, ctx.of(value).reshape(-1), why)
            if value.is_param:
                for axis in range(len(value.sizes)):
                    ctx.pin(node, ctx.param(value, axis), why)
    for output in node.outputs:
        ctx.put(output, none(len(output.sizes)))


def graph_input(node: Node, ctx: Context) -> None:
    """Inputs have no channels that could be removed."""
    for output in node.outputs:
        ctx.put(output, none(len(output.sizes)))


def graph_output(node: Node, ctx: Context) -> None:
    """The caller expects every channel of an output."""
    for value in node.inputs:
        ctx.pin(node, ctx.of(value).reshape(-1), "is a graph output")
