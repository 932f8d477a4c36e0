"""Operators that irtool does not understand: the channels that flow into them are pinned, with the reason."""

from __future__ import annotations

from irtool.ir.graph import Node, Value
from irtool.ops.rules.context import Context, none

_RECURRENT, _ORDERED, _DISTANCE = "a recurrent layer ties its gates together", "orders values by size", "a distance sums over channels"
REASONS = {
    **dict.fromkeys(("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"), _RECURRENT),
    **dict.fromkeys(("topk", "sort", "argsort", "kthvalue"), _ORDERED),
    **dict.fromkeys(
        ("cdist", "_cdist_forward", "cosine_similarity", "pairwise_distance", "CosineSimilarity", "PairwiseDistance"), _DISTANCE
    ),
    **dict.fromkeys(("NonMaxSuppression", "NonZero", "Compress", "Unique"), "picks entries, how many the data say"),
    **dict.fromkeys(
        (
            "QLinearConv",
            "QLinearMatMul",
            "ConvInteger",
            "MatMulInteger",
            "QLinearAdd",
            "QLinearGlobalAveragePool",
            "QLinearConcat",
            "QLinearAveragePool",
            "QLinearLeakyRelu",
            "QLinearSigmoid",
            "QLinearMul",
            "QLinearSoftmax",
            "QGemm",
            "DynamicQuantizeLinear",
            "DynamicQuantizeMatMul",
            "MatMulIntegerToFloat",
        ),
        "is computed in integers with scales of its own: prune the float model, then quantise it",
    ),
    **dict.fromkeys(("Bilinear", "bilinear"), "a bilinear layer multiplies every channel with every other"),
}
"""Reasons for operators that irtool knows, and cannot prune through; by their name in torch."""


def short_name(callee: str) -> str:
    """`topk` of `torch.topk` and of `aten.topk.default`."""
    parts = callee.split(".")
    return parts[1] if parts[0] == "aten" and len(parts) > 1 else parts[-1]


def barrier(node: Node, ctx: Context, reason: str | None = None) -> None:
    """Pin every channel that flows in; nothing that flows out is a channel."""
    why = reason or REASONS.get(short_name(node.callee)) or f"flows into {node.callee}, which irtool does not know"
    for value in node.inputs:
        pin_value(node, ctx, value, why)
    for output in node.outputs:
        ctx.put(output, none(len(output.sizes)))


def pin_value(node: Node, ctx: Context, value: Value, reason: str) -> None:
    """Pin every channel of one value."""
    if value.shape is None:
        return
    for labels in ctx.parts(value):
        ctx.pin(node, labels.reshape(-1), reason)
    if value.is_param:
        for axis in range(len(value.sizes)):
            ctx.pin(node, ctx.param(value, axis), reason)
        ctx.computed(value, node, reason)  # a grouped convolution has an axis of its own


def graph_input(node: Node, ctx: Context) -> None:
    """Inputs have no channels that could be removed."""
    for output in node.outputs:
        ctx.put(output, none(len(output.sizes)))


def graph_output(node: Node, ctx: Context) -> None:
    """The caller expects every channel of an output."""
    for value in node.inputs:
        ctx.pin(node, ctx.of(value).reshape(-1), "is a graph output")
