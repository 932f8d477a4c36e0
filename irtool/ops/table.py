"""The operator table: which rule serves which operator. What is not here is a barrier."""

from __future__ import annotations

from irtool.ops.barrier import barrier, graph_input, graph_output
from irtool.ops.context import Rule
from irtool.ops.contraction import attention, conv, einsum, embedding, linear, matmul
from irtool.ops.elementwise import channelwise, elementwise, prelu, softmax
from irtool.ops.movement import concat, movement, pad, reshape, select
from irtool.ops.normalisation import across_channels, group_norm, over_last_axes, per_channel, reduce

_FAMILIES: dict[Rule, str] = {
    graph_input: "Input",
    graph_output: "Output",
    conv: "Conv ConvTranspose",
    linear: "Gemm",
    matmul: "MatMul",
    einsum: "Einsum",
    attention: "Attention",
    embedding: "Embedding",
    per_channel: "BatchNormalization InstanceNormalization",
    over_last_axes: "LayerNormalization RMSNormalization",
    group_norm: "GroupNormalization",
    across_channels: "LRN Cumsum LpNormalization",
    reduce: "Reduce",
    softmax: "Softmax",
    prelu: "PRelu",
    channelwise: "Pool Resize",
    concat: "Concat",
    reshape: "Reshape",
    pad: "Pad",
    select: "ChannelSelect",
    movement: "Transpose Stack Split Slice Gather Expand Roll DepthToSpace SpaceToDepth ChannelShuffle Unfold Glu",
    elementwise: "Dropout StochasticDepth Identity",
}
RULES: dict[str, Rule] = {op: rule for rule, ops in _FAMILIES.items() for op in ops.split()}
RULES.pop("Glu")  # a gate multiplies one half by the other: not movement; written out as Split, Sigmoid, Mul when traced
_OPAQUE = frozenset({"Opaque", "Im2Col", "Glu"})


def rule_for(op: str) -> Rule:
    """The rule that serves an operator. Names outside the families are elementwise functions of the host's table."""
    if op in _OPAQUE:
        return barrier
    return RULES.get(op, elementwise)


