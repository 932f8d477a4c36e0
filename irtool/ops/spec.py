"""The operator table: which rule serves which operator. What is not here is a barrier."""

from __future__ import annotations

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
    across_channels: "LRN Cumsum LogCumsumExp LpNormalization",
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
    """
    Abs Acos Acosh Add Addcdiv Addcmul Alias AlphaDropout And Angle Asin Asinh Atan Atan2 Atanh Bfloat16 BitShift BitwiseAnd
    BitwiseLeftShift BitwiseNot BitwiseOr BitwiseRightShift BitwiseXor Bool Byte Cast CastLike Ceil Celu Char ClampMax ClampMin Clip
    Complex Conj ConjPhysical Copy Copysign Cos Cosh Cpu Cuda Deg2rad DequantizeLinear Digamma Div Divide Double Dropout Dropout1d
    Dropout2d Dropout3d Elu Eq Equal Erf Erfc Erfinv Exp Exp2 Expm1 FeatureDropout Fill Float FloatPower Floor FloorDivide Floordiv Fmax
    Fmin Fmod Frac FullLike Ge Gelu Greater GreaterOrEqual Gt Half HardSigmoid HardSwish Hardshrink Heaviside Hypot I0 Identity Imag Int
    Invert IsInf IsNaN Isclose Isfinite Isinf Isnan Isneginf Isposinf Ldexp Le LeakyRelu Lerp Less LessOrEqual Lgamma LiftFreshCopy Log
    Log10 Log1p Log2 Logaddexp Logaddexp2 LogicalAnd LogicalNot LogicalOr LogicalXor Logit Logsigmoid Long Lt MaskedFill Max Mean Min
    Mish Mod Mul Multiply NanToNum Ne Neg Negative Nextafter Not OnesLike Or OwnBackward Polar Pow QuantizeLinear Rad2deg Radd Real
    Reciprocal Relu Remainder RequiresGrad ResolveConj Rmul Round Rpow Rrelu Rsqrt Rsub Rtruediv Selu Sgn Short Shrink Sigmoid Sign
    Signbit Sin Sinc Sinh Softplus Softshrink Softsign SpecialEntr SpecialErfcx SpecialI0e SpecialI1 SpecialI1e SpecialLogNdtr
    SpecialNdtr SpecialNdtri SpecialXlog1py Sqrt Square StochasticDepth StopGradient Sub Subtract Sum Swish Tan Tanh Tanhshrink Threshold
    ThresholdedRelu To ToCopy TrueDivide Trunc Type TypeAs Where Xlogy Xor Zero ZerosLike
    """.split()
)
"""Operators that compute each entry from the entries at its place. Names that ONNX lacks are torch's, in ONNX's style."""
RULES: dict[str, Rule] = {op: rule for rule, ops in _FAMILIES.items() for op in ops.split()} | dict.fromkeys(ELEMENTWISE, elementwise)


def rule_for(op: str) -> Rule:
    """The rule that serves an operator, part by part where a value has several; what has none is a barrier, never a guess."""
    return by_parts(RULES.get(op, barrier), ELEMENTWISE.__contains__)
