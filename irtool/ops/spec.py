"""The table of operators, one row each. An operator without a row is a barrier.

An operator that is new to irtool needs a row here, and one in each host that has it (`hosts/torch/operators.py`, `hosts/onnx/operators.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from irtool.ir.attributes import Attrs
from irtool.ir.graph import Node
from irtool.ir.sizes import Sizes
from irtool.ops.facets import counts, macs, mixing, moments, resize, unchanged
from irtool.ops.facets.macs import Product
from irtool.ops.facets.mixing import Mixing
from irtool.ops.rules.context import Rule
from irtool.ops.rules.contraction import attention, conv, deform_conv, embedding, linear, matmul
from irtool.ops.rules.einsum import einsum
from irtool.ops.rules.elementwise import channelwise, complex_view, elementwise, fourier, glu, pooled_regions, prelu, softmax, unpool
from irtool.ops.rules.movement import columns, concat, filled, images, movement, pad, reshape, select, shuffle, stack, stretch
from irtool.ops.rules.normalisation import across_channels, group_norm, over_last_axes, per_channel, quantise_channels, reduce
from irtool.ops.rules.opaque import barrier, graph_input, graph_output
from irtool.ops.rules.products import by_parts
from irtool.ops.rules.recurrent import recurrent


@dataclass(frozen=True, slots=True)
class OpSpec:
    """An operator: what each analysis asks of it. Defaults are what is true of an operator of which nothing is known.

    Attributes:
        labels: the rule that carries channel labels from its operands to its outputs.
        products: its multiply-accumulates for the whole example batch, as a sum of products of sizes.
        channels: how many channels it reads and makes, as its parameters say; None for an operator without such.
        mixing: how it is computed from the surviving channels, where it mixes channels; None where labels and masks tell all.
        moments: what becomes of means and variances; None where that is not known.
        returns_input: whether a node of it gives what it reads.
        resize: the attributes that state sizes or positions, after slicing.
    """

    labels: Rule
    products: Callable[[Node], list[Product]] = macs.none
    channels: Callable[[Node], tuple[int, int] | None] = counts.none
    mixing: Mixing | None = None
    moments: moments.Rule | None = None
    returns_input: Callable[[Node], bool] = unchanged.never
    resize: resize.Rule = resize.nothing


_LAYER = OpSpec(conv, macs.conv, counts.conv, moments=moments.layer, resize=resize.conv)
_MIXED = OpSpec(across_channels, mixing=mixing.same_shape)
_LAST_AXES = OpSpec(over_last_axes, channels=counts.norm, mixing=mixing.last_axes_norm, resize=resize.norm_shape)
_MOVED = OpSpec(movement, moments=moments.moved)
_BY_ENTRY = OpSpec(elementwise, moments=moments.elementwise)
_PASSED = replace(_BY_ENTRY, moments=moments.passed)

_ROWS: tuple[tuple[str, OpSpec], ...] = (
    ("Input", OpSpec(graph_input)),
    ("Constant", OpSpec(filled, resize=resize.result)),
    ("Output", OpSpec(graph_output)),
    ("Conv", replace(_LAYER, mixing=mixing.same_shape)),
    ("ConvTranspose", _LAYER),
    ("DeformConv", OpSpec(deform_conv)),
    ("Gemm", OpSpec(linear, macs.gemm, counts.gemm, moments=moments.layer)),
    ("MatMul", OpSpec(matmul, macs.matmul)),
    ("Einsum", OpSpec(einsum, macs.einsum)),
    ("Attention", OpSpec(attention, macs.attention, resize=resize.attention)),
    ("Embedding", OpSpec(embedding)),
    ("LSTM GRU RNN", OpSpec(recurrent)),
    ("BatchNormalization", OpSpec(per_channel, channels=counts.norm, mixing=mixing.same_shape, moments=moments.batchnorm)),
    ("InstanceNormalization", OpSpec(per_channel, channels=counts.norm, mixing=mixing.same_shape, resize=resize.instance_norm)),
    ("LayerNormalization RMSNormalization", _LAST_AXES),
    ("GroupNormalization", OpSpec(group_norm, channels=counts.norm, mixing=mixing.group_norm, resize=resize.group_norm)),
    ("QuantizePerChannel", OpSpec(quantise_channels)),
    ("LRN Cumsum LogCumsumExp LpNormalization", _MIXED),
    ("Reduce", OpSpec(reduce, mixing=mixing.reduced, moments=moments.reduced)),
    ("Glu", OpSpec(glu)),
    ("Softmax", OpSpec(softmax, mixing=mixing.same_shape)),
    ("PRelu", OpSpec(prelu, channels=counts.norm)),
    ("Pool", OpSpec(channelwise, moments=moments.sampled)),
    ("Resize", OpSpec(channelwise, moments=moments.sampled, resize=resize.result)),
    ("Trilu", OpSpec(channelwise)),
    ("MaxUnpool", OpSpec(unpool)),
    ("RoiPool", OpSpec(pooled_regions)),
    ("Fourier", OpSpec(fourier)),
    ("ViewAsReal", OpSpec(complex_view)),
    ("Im2Col", OpSpec(columns)),
    ("Col2Im", OpSpec(images)),
    ("Concat", OpSpec(concat, moments=moments.concat, returns_input=unchanged.one_part)),
    ("Reshape", OpSpec(reshape, moments=moments.reshape, resize=resize.result)),
    ("Pad", OpSpec(pad, returns_input=unchanged.pads_nothing, resize=resize.pad)),
    ("ChannelSelect", OpSpec(select, channels=counts.select, moments=moments.select, resize=resize.select)),
    ("Stack", OpSpec(stack, moments=moments.moved)),
    ("ChannelShuffle", OpSpec(shuffle, moments=moments.moved)),
    ("Expand", OpSpec(stretch, moments=moments.moved, resize=resize.result)),
    ("Transpose", replace(_MOVED, returns_input=unchanged.moves_nothing)),
    ("Slice", replace(_MOVED, returns_input=unchanged.is_full, resize=resize.slices)),
    ("Split", replace(_MOVED, resize=resize.split)),
    ("Gather", replace(_MOVED, resize=resize.gather)),
    ("Roll DepthToSpace SpaceToDepth Unfold", _MOVED),
    ("Identity", replace(_PASSED, returns_input=unchanged.is_plain)),
    ("Dropout StochasticDepth", _PASSED),
    ("Cast", replace(_BY_ENTRY, returns_input=unchanged.keeps_type)),
    ("Clip", replace(_BY_ENTRY, returns_input=unchanged.is_unbounded)),
)
ELEMENTWISE = frozenset(
    """
    Abs Acos Acosh Add Addcdiv Addcmul Alias AlphaDropout And Angle Asin Asinh Atan Atan2 Atanh Bfloat16 BitShift BitwiseAnd
    BitwiseLeftShift BitwiseNot BitwiseOr BitwiseRightShift BitwiseXor Bool Byte Cast CastLike Ceil Celu Char ClampMax ClampMin Clip
    Complex Conj ConjPhysical Copy Copysign Cos Cosh Cpu Cuda Deg2rad DequantizeLinear Digamma Div Divide Double Dropout Dropout1d
    Dropout2d Dropout3d Elu Eq Equal Erf Erfc Erfinv Exp Exp2 Expm1 FakeQuantizePerTensorAffine FeatureDropout Fill Float FloatPower Floor FloorDivide Floordiv Fmax
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
_UNKNOWN = OpSpec(barrier)
SPECS: dict[str, OpSpec] = dict.fromkeys(ELEMENTWISE, _BY_ENTRY) | {op: spec for ops, spec in _ROWS for op in ops.split()}
"""All rows by name."""


def spec_of(op: str) -> OpSpec:
    """The row of an operator; a barrier where there is none."""
    return SPECS.get(op, _UNKNOWN)


def rule_for(op: str) -> Rule:
    """The rule that serves an operator, part by part where a value has several; what has none is a barrier, never a guess."""
    return by_parts(spec_of(op).labels, ELEMENTWISE.__contains__)


def resized(node: Node, sizes: Sizes) -> Attrs:
    """Return the attributes of a node that state sizes or positions, after slicing; none if all that it reads and makes is as it was."""
    rule = spec_of(node.op).resize
    if rule is resize.nothing or all(sizes.shape(value) == value.shape for value in (*node.inputs, *node.outputs)):
        return {}
    return rule(node, sizes)
