"""Properties of operators, by name: what passes and analyses ask about an operator beside its labels."""

from __future__ import annotations

WINDOWED = frozenset({"Conv", "ConvTranspose"})
"""Layers whose weight slides over positions."""
AFFINE = WINDOWED | {"Gemm"}
"""Layers that are a product with a weight, plus a bias: a scale and a shift behind them can be folded in."""
LAYERS = AFFINE | {"MatMul"}
"""Layers that sum over input channels with a weight."""
SUMS_CHANNELS = LAYERS | {"Einsum", "Attention", "LSTM", "GRU", "RNN"}
"""Operators that sum over channels, where what a removed one adds ends."""
MAKES_CHANNELS = AFFINE | {"ChannelSelect"}
"""Operators whose result has channels of its own, which no residual stream shares."""
KEEPS_HEADS = frozenset({"MatMul", "Einsum", "Attention"})
"""Operators whose results have all heads, but no channels along them."""
KEEPS_ORDER = WINDOWED | {"GroupNormalization"}
"""Operators that work in groups of channels and leave these in their order, as a shuffle does not."""
HAS_WEIGHT = LAYERS | {"BatchNormalization"}
"""Operators with a weight as second input, in ONNX files and in the view."""

HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "Pool", "Dropout", "Identity"})
"""f(s x) = s f(x) for s > 0, channel by channel."""
BY_ENTRY = frozenset(
    "Sigmoid HardSigmoid Tanh Relu LeakyRelu Gelu Swish HardSwish Exp Neg Clip Cast To Float Long Not Sqrt Softplus".split()
)
"""Functions of one entry that stand between a map and what it weighs: they keep where its entries are."""
COMMUTATIVE = frozenset({"Add", "Mul", "Max", "Min"})
"""f(x, y) = f(y, x)."""
ADDITIVE = frozenset({"Add", "Sub", "Rsub", "Radd", "Sum"})
"""The mean of the result is that of sums and differences of means."""
TELLS_MOMENTS = AFFINE | {"BatchNormalization"}
"""Operators that tell something of the mean of their outputs though nothing is known of their input."""

SIZED_BY_ARGUMENT = frozenset({"Reshape", "Expand", "Resize", "Split", "Pool"})
"""Operators whose result's size is an argument. It is one that differs only if the inputs' sizes do not differ already."""
NEVER_CONSTANT = frozenset(
    {
        "BatchNormalization",
        "Constant",
        "DequantizeLinear",
        "Dropout",
        "Input",
        "Opaque",
        "Output",
        "QuantizeLinear",
        "QuantizePerChannel",
        "StochasticDepth",
    }
)
"""Operators that may be random, learn while they run, or say something that a constant would not: how a weight is stored."""
