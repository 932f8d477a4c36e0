"""The operator table: which rule serves which operator. What is not here is a barrier."""

from __future__ import annotations

from irtool.hosts.onnx import operators as onnx_targets
from irtool.hosts.torch.operators import BINARY, UNARY, UNARY_MODULES, onnx_name
from irtool.ops.context import Rule
from irtool.ops.contraction import attention, conv, deform_conv, embedding, linear, matmul
from irtool.ops.einsum import einsum
from irtool.ops.elementwise import channelwise, complex_view, elementwise, fourier, glu, pooled_regions, prelu, softmax, unpool
from irtool.ops.movement import columns, concat, filled, images, movement, pad, reshape, select, shuffle, stack, stretch
from irtool.ops.normalisation import across_channels, group_norm, over_last_axes, per_channel, quantise_channels, reduce
from irtool.ops.opaque import barrier, graph_input, graph_output
from irtool.ops.products import by_parts
from irtool.ops.recurrent import recurrent

_FAMILIES: dict[Rule, str] = {
    graph_input: "Input",
    filled: "Constant",
    graph_output: "Output",
    conv: "Conv ConvTranspose",
    deform_conv: "DeformConv",
    linear: "Gemm",
    matmul: "MatMul",
    einsum: "Einsum",
    attention: "Attention",
    embedding: "Embedding",
    recurrent: "LSTM GRU RNN",
    per_channel: "BatchNormalization InstanceNormalization",
    over_last_axes: "LayerNormalization RMSNormalization",
    group_norm: "GroupNormalization",
    quantise_channels: "QuantizePerChannel",
    across_channels: "LRN Cumsum LpNormalization",
    reduce: "Reduce",
    glu: "Glu",
    softmax: "Softmax",
    prelu: "PRelu",
    channelwise: "Pool Resize Trilu",
    unpool: "MaxUnpool",
    pooled_regions: "RoiPool",
    fourier: "Fourier",
    complex_view: "ViewAsReal",
    columns: "Im2Col",
    images: "Col2Im",
    concat: "Concat",
    reshape: "Reshape",
    pad: "Pad",
    select: "ChannelSelect",
    stack: "Stack",
    shuffle: "ChannelShuffle",
    stretch: "Expand",
    movement: "Transpose Split Slice Gather Roll DepthToSpace SpaceToDepth Unfold",
}
ELEMENTWISE = frozenset(
    {"StochasticDepth", "OwnBackward"}
    | {onnx_name(name) for name in (UNARY + BINARY).split()}
    | {spec.op for spec in UNARY_MODULES}
    | onnx_targets.ELEMENTWISE
) - {"PRelu"}
RULES: dict[str, Rule] = {op: rule for rule, ops in _FAMILIES.items() for op in ops.split()} | dict.fromkeys(ELEMENTWISE, elementwise)


def rule_for(op: str) -> Rule:
    """The rule that serves an operator, part by part where a value has several; what has none is a barrier, never a guess."""
    return by_parts(RULES.get(op, barrier), ELEMENTWISE.__contains__)
