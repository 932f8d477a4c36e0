"""Callables of torch in ONNX's vocabulary, with the names of their arguments.

One row an operator: the ONNX name, then the torch names that mean it, then the argument names in call order. Methods,
functions and ATen overloads share a row, since all three agree on names and order (where they do not, the ATen
overload has a row of its own under `aten.<name>`). An argument after `*` collects the rest (`x.view(2, 3)`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import fx, nn

from irtool.hosts.torch.channel_select import ChannelSelect
from irtool.hosts.torch.tracing.recording.autograd import OwnBackward, recorded_by_element
from irtool.hosts.torch.tracing.recording.hooks import hooked
from irtool.ir.graph import Value
from irtool.ops.rules.opaque import short_name


@dataclass(frozen=True, slots=True)
class Spec:
    """A row of the table: ONNX operator, argument names, and the formula of the output's shape."""

    op: str
    arguments: tuple[str, ...] = ()
    shape: str = "run"


def _table(rows: str) -> dict[str, Spec]:
    specs: dict[str, Spec] = {}
    for row in filter(None, map(str.strip, rows.strip().splitlines())):
        op, names, arguments, shape = (part.strip() for part in row.split("|"))
        for name in names.split():
            specs[name] = Spec(op, tuple(arguments.split()), shape)
    return specs


UNARY = """
relu relu_ relu6 relu6_ leaky_relu leaky_relu_ elu elu_ selu selu_ celu gelu silu silu_ mish mish_ sigmoid sigmoid_ tanh tanh_
hardtanh hardtanh_ hardsigmoid hardsigmoid_ hardswish hardswish_ softplus softsign logsigmoid tanhshrink softshrink hardshrink
threshold exp log log2 log10 log1p expm1 sqrt rsqrt square abs neg negative reciprocal sin cos erf sign round floor ceil clamp clip clamp_min
clamp_max clamp_ nan_to_num contiguous clone detach float double half to type_as type alias zero_ fill_ identity dropout dropout_
feature_dropout dropout1d dropout2d dropout3d alpha_dropout zeros_like ones_like full_like rrelu
logical_not bitwise_not invert real imag angle conj conj_physical resolve_conj isnan isinf isfinite trunc frac sinh cosh atan asin acos lift_fresh_copy detach_ stop_gradient _to_copy requires_grad_ cpu cuda bfloat16
tan asinh acosh atanh exp2 erfc erfinv logit sinc digamma lgamma i0 sgn signbit deg2rad rad2deg isposinf isneginf positive pos int long short byte char bool
special_entr special_erfcx special_log_ndtr special_ndtr special_ndtri special_i0e special_i1 special_i1e fake_quantize_per_tensor_affine
"""
BINARY = """
add sub mul div truediv true_divide divide multiply subtract floordiv floor_divide mod remainder fmod pow maximum minimum where eq ne lt le gt ge
iadd imul isub itruediv add_ sub_ mul_ div_ rsub logical_and logical_or masked_fill masked_fill_ addcmul addcdiv lerp lerp_ and_ or_ xor
bitwise_and bitwise_or bitwise_xor logical_xor complex polar copy_ atan2 hypot copysign heaviside radd rmul rtruediv rpow pow_ fmax fmin
logaddexp logaddexp2 xlogy ldexp float_power nextafter isclose special_xlog1py bitwise_left_shift bitwise_right_shift lshift rshift
"""
RUN_DTYPE = frozenset("int long short byte char bool float_power isclose isposinf isneginf signbit bitwise_not invert real imag angle conj conj_physical resolve_conj bitwise_xor logical_xor complex polar eq ne lt le gt ge logical_and logical_or logical_not isnan isinf isfinite and_ or_ xor bitwise_and bitwise_or to type type_as "
                      "_to_copy where float double half bfloat16".split())  # fmt: skip
ONNX_NAMES = {
    "relu": "Relu", "relu6": "Clip", "hardtanh": "Clip", "clamp": "Clip", "clip": "Clip", "leaky_relu": "LeakyRelu", "elu": "Elu",
    "selu": "Selu", "gelu": "Gelu", "mish": "Mish", "sigmoid": "Sigmoid", "tanh": "Tanh", "hardsigmoid": "HardSigmoid",
    "hardswish": "HardSwish", "softplus": "Softplus", "exp": "Exp", "sqrt": "Sqrt", "abs": "Abs", "neg": "Neg", "erf": "Erf",
    "dropout": "Dropout", "contiguous": "Identity", "clone": "Identity", "detach": "Identity", "identity": "Identity", "add": "Add",
    "iadd": "Add", "sub": "Sub", "isub": "Sub", "mul": "Mul", "imul": "Mul", "div": "Div", "truediv": "Div", "itruediv": "Div", "pow": "Pow",
    "maximum": "Max", "minimum": "Min", "where": "Where", "prelu": "PRelu", "reciprocal": "Reciprocal", "log": "Log",
    "silu": "Swish", "celu": "Celu", "positive": "Identity", "pos": "Identity", "lshift": "BitwiseLeftShift", "rshift": "BitwiseRightShift",
}  # fmt: skip


def onnx_name(name: str) -> str:
    """ONNX's name of an elementwise torch function, or the torch name in the same style where ONNX has none."""
    base = name.removesuffix("_")
    return ONNX_NAMES.get(base) or "".join(part.capitalize() for part in base.split("_"))


def _with_writes(names: str) -> list[str]:
    """The names, and those of the forms that write into their input: what `abs` computes `abs_` does."""
    listed = names.split()
    return [*listed, *(f"{name}_" for name in listed if hasattr(torch.Tensor, f"{name}_"))]


FUNCTIONS: dict[str, Spec] = {
    **{name: Spec(onnx_name(name), ("input",), "run" if name in RUN_DTYPE else "same") for name in _with_writes(UNARY)},
    **{name: Spec(onnx_name(name), ("input", "other", "third", "value"), "run" if name in RUN_DTYPE else "broadcast") for name in _with_writes(BINARY)},
    **_table("""
    Conv | conv1d conv2d conv3d | input weight bias stride padding dilation groups | conv
    Conv | aten.convolution | input weight bias stride padding dilation transposed output_padding groups | run
    DeformConv | torchvision.deform_conv2d | input weight offset mask bias stride_h stride_w pad_h pad_w dil_h dil_w groups offset_groups use_mask | run
    ConvTranspose | conv_transpose1d conv_transpose2d conv_transpose3d | input weight bias stride padding output_padding groups dilation | run
    Gemm | linear | input weight bias | linear
    Gemm | addmm | bias input weight_t | run
    MatMul | matmul bmm mm __matmul__ | input other | run
    Einsum | einsum | equation *operands | run
    Einsum | outer ger | input vec2 | run
    Attention | scaled_dot_product_attention | input key value attn_mask dropout_p is_causal scale enable_gqa | same_value
    BatchNormalization | batch_norm | input running_mean running_var weight bias training momentum eps | same
    BatchNormalization | aten.batch_norm aten.cudnn_batch_norm | input weight bias running_mean running_var training momentum eps | same
    InstanceNormalization | instance_norm | input running_mean running_var weight bias use_input_stats momentum eps | same
    LayerNormalization | layer_norm | input normalized_shape weight bias eps | same
    RMSNormalization | rms_norm | input normalized_shape weight eps | same
    GroupNormalization | group_norm | input num_groups weight bias eps | same
    LpNormalization | normalize | input p dim eps | same
    LRN | local_response_norm | input size alpha beta k | same
    Softmax | softmax log_softmax softmin _softmax | input dim | same
    Glu | glu | input dim | run
    Cumsum | cumsum cumprod | input dim | same
    LogCumsumExp | logcumsumexp | input dim | same
    Pool | max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool2d | input kernel_size stride padding dilation ceil_mode | run
    Pool | adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d | input output_size | adaptive
    Pool | max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices | input kernel_size stride padding dilation ceil_mode | run
    MaxUnpool | max_unpool1d max_unpool2d max_unpool3d | input indices kernel_size stride padding output_size | run
    Pool | adaptive_max_pool1d_with_indices adaptive_max_pool2d_with_indices adaptive_max_pool3d_with_indices | input output_size | run
    RoiPool | grid_sample grid_sampler | input grid | run
    RoiPool | torchvision.roi_align torchvision.roi_pool | input rois spatial_scale | run
    Fourier | fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft | input n dim norm | run
    Fourier | fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_fftn fft_ifftn fft_rfftn fft_irfftn | input s dim norm | run
    Fourier | fft_fftshift fft_ifftshift | input dim | run
    Pool | adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d _adaptive_max_pool2d | input output_size | run
    Resize | interpolate upsample upsample_nearest upsample_bilinear upsample_nearest2d upsample_bilinear2d upsample_bicubic2d | input size | run
    Resize | upsample_nearest1d upsample_nearest3d upsample_linear1d upsample_trilinear3d _upsample_bicubic2d_aa _upsample_bilinear2d_aa | input size | run
    PRelu | prelu | input weight | same
    Reduce | mean sum amax amin max min prod var std logsumexp var_mean std_mean argmax argmin any all median | input dim keepdim | run
    Reduce | norm | input p dim keepdim | run
    Reduce | linalg_vector_norm | input ord dim keepdim | run
    Reshape | view reshape flatten unflatten squeeze unsqueeze _unsafe_view view_as reshape_as ravel squeeze_ unsqueeze_ | input *shape | run
    Transpose | permute transpose t swapaxes swapdims movedim moveaxis adjoint mT T numpy_T | input *dims | run
    Concat | cat concat concatenate | tensors dim | concat
    Stack | stack hstack vstack | tensors dim | run
    Split | split chunk tensor_split unbind split_with_sizes unsafe_split unsafe_chunk | input split_size_or_sections dim | run
    Slice | narrow select slice getitem diagonal diag_embed | input *arguments | run
    Gather | index_select gather take_along_dim | input dim index | run
    Gather | aten.index | input indices | run
    Expand | expand expand_as broadcast_to repeat repeat_interleave tile broadcast_tensors meshgrid | input *sizes | run
    Roll | roll flip fliplr flipud rot90 | input *arguments | run
    DepthToSpace | pixel_shuffle | input upscale_factor | run
    SpaceToDepth | pixel_unshuffle | input downscale_factor | run
    ChannelShuffle | channel_shuffle native_channel_shuffle | input groups | run
    Pad | pad constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d replication_pad3d | input pad mode value | run
    Unfold | unfold | input *arguments | run
    Im2Col | im2col | input kernel_size dilation padding stride | run
    Col2Im | col2im fold | input output_size kernel_size dilation padding stride | run
    ViewAsReal | view_as_real view_as_complex | input | run
    Constant | new_zeros new_ones new_full new_empty zeros ones full empty arange linspace logspace scalar_tensor eye fft_fftfreq fft_rfftfreq | input | run
    Constant | hann_window hamming_window blackman_window bartlett_window kaiser_window | input | run
    Trilu | tril triu | input diagonal | same
    AffineGrid | affine_grid affine_grid_generator | input size align_corners | run
    Embedding | embedding | weight input | run
    StochasticDepth | stochastic_depth drop_path | input p mode training | same
    """),
}  # fmt: skip

_POOLS = (nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd, nn.modules.pooling._LPPoolNd)  # fmt: skip
_PADS = (nn.modules.padding._ConstantPadNd, nn.modules.padding._ReflectionPadNd, nn.modules.padding._ReplicationPadNd, nn.modules.padding._CircularPadNd)  # fmt: skip
_UNARY_MODULES = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Hardtanh,
                  nn.Hardsigmoid, nn.Hardswish, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink,
                  nn.Threshold, nn.Identity, nn.RReLU)  # fmt: skip

MODULES: tuple[tuple[type | tuple[type, ...], Spec], ...] = (
    (
        nn.modules.conv._ConvTransposeNd,
        Spec("ConvTranspose", ("stride", "padding", "output_padding", "groups", "dilation", "padding_mode")),
    ),
    (nn.modules.conv._ConvNd, Spec("Conv", ("stride", "padding", "dilation", "groups", "padding_mode"), "conv")),
    (nn.Linear, Spec("Gemm", (), "linear")),
    (nn.modules.batchnorm._BatchNorm, Spec("BatchNormalization", ("eps",), "same")),
    (nn.modules.instancenorm._InstanceNorm, Spec("InstanceNormalization", ("eps",), "same")),
    (nn.LayerNorm, Spec("LayerNormalization", ("normalized_shape", "eps"), "same")),
    (nn.RMSNorm, Spec("RMSNormalization", ("normalized_shape", "eps"), "same")),
    (nn.GroupNorm, Spec("GroupNormalization", ("num_groups", "eps"), "same")),
    (nn.LocalResponseNorm, Spec("LRN", ("size",), "same")),
    (nn.PReLU, Spec("PRelu", (), "same")),
    (_UNARY_MODULES, Spec("", (), "same")),
    (nn.modules.dropout._DropoutNd, Spec("Dropout", ("p",), "same")),
    ((nn.Softmax, nn.LogSoftmax, nn.Softmin), Spec("Softmax", ("dim",), "same")),
    (nn.Softmax2d, Spec("Softmax", (), "same")),
    (nn.GLU, Spec("Glu", ("dim",))),
    (nn.modules.pooling._AdaptiveAvgPoolNd, Spec("Pool", ("output_size",), "adaptive")),
    (_POOLS, Spec("Pool", ("kernel_size", "stride", "padding", "output_size"))),
    (nn.modules.pooling._MaxUnpoolNd, Spec("MaxUnpool", ("kernel_size", "stride", "padding"))),
    (nn.Unfold, Spec("Im2Col", ("kernel_size", "dilation", "padding", "stride"))),
    (nn.Fold, Spec("Col2Im", ("output_size", "kernel_size", "dilation", "padding", "stride"))),
    (nn.Upsample, Spec("Resize", ("size", "scale_factor", "mode"))),
    ((nn.Flatten, nn.Unflatten), Spec("Reshape")),
    (nn.PixelShuffle, Spec("DepthToSpace", ("upscale_factor",))),
    (nn.PixelUnshuffle, Spec("SpaceToDepth", ("downscale_factor",))),
    (nn.ChannelShuffle, Spec("ChannelShuffle", ("groups",))),
    (_PADS, Spec("Pad", ("padding",))),
    (nn.Embedding, Spec("Embedding", ("max_norm",))),
    ((nn.LSTM, nn.GRU, nn.RNN), Spec("")),
)


_ACTIVATIONS = {name.replace("_", ""): onnx_name(name) for name in (*UNARY.split(), *ONNX_NAMES) if not name.endswith("_")}


def module_spec(module: nn.Module) -> Spec | None:
    """The row for a module's class or a base of it; None for a class that irtool does not know."""
    kind = type(module)
    if kind.__name__ == "StochasticDepth" and kind.__module__.startswith("torchvision.ops"):
        return Spec("StochasticDepth", ("p", "mode"), "same")
    if isinstance(module, ChannelSelect):
        return Spec("ChannelSelect", (), "run")
    if isinstance(module, OwnBackward):
        return Spec("OwnBackward", (), "run") if by_element(module.function) is not None else None
    if not kind.__module__.startswith("torch.nn"):
        return None  # A user's subclass may override forward: it is traced into, never trusted by its base.
    for classes, spec in MODULES:
        if isinstance(module, classes):
            return spec if spec.op else Spec(_module_op(type(module)), spec.arguments, spec.shape)
    return None


def _module_op(kind: type) -> str:
    """The name that the function of the same name has."""
    return _ACTIVATIONS.get(kind.__name__.lower()) or kind.__name__


@cache
def by_element(function: type[torch.autograd.Function]) -> fx.Graph | None:
    """The forward of a function of the user's own that calls elementwise operators alone (a memory-saving swish); None for another."""
    return recorded_by_element(function, _is_by_element)


_BY_ELEMENT = frozenset((UNARY + BINARY).split())


def _is_by_element(node: fx.Node) -> bool:
    name = str(getattr(node.target, "__name__", node.target))
    if name == "view_as" and len(set(node.args)) == 1:  # the tensor itself, which autograd is to take for another
        return True
    known = node.op == "call_method" or function_spec(node.target) is not None
    return (
        known
        and name.split(".")[0] in _BY_ELEMENT
        and not names_a_write(name)
        and "inplace" not in node.kwargs
        and "out" not in node.kwargs
    )


UNARY_MODULES = tuple(Spec(_module_op(kind), (), "same") for kind in _UNARY_MODULES)
"""Operators of the activation modules without parameters."""


_TRUSTED = ("torch", "torch.nn.functional", "_operator", "torch._C", "torch._C._nn", "torch._C._linalg", "torch._C._fft", "torch._C._special", "torchvision.ops.stochastic_depth", "builtins", "math", "torch.functional", "torch._jit_internal", "torch.nn.modules.utils")  # fmt: skip


PAIRWISE = {"max": "maximum", "min": "minimum"}
"""Reductions that compare two tensors when they are given two."""


def function_spec(target: Any, *, pairwise: bool = False) -> Spec | None:
    """The row for a function, a method name or an ATen overload; None if there is none.

    `pairwise` (the second argument is a tensor) tells `max(x, y)`, which is elementwise, from `max(x, dim)`.

    A function of the same name from a foreign module is not in the table: a user's `add` may be anything.
    """
    found = _row(target)
    if pairwise and found is not None and found.op == "Reduce":
        return next((FUNCTIONS[other] for name, other in PAIRWISE.items() if found is FUNCTIONS[name]), found)
    return found


_SAME_NAME = {torch.nn.functional.unfold: "im2col"}
"""Functions that share their name with a method that does something else."""


def _row(target: Any) -> Spec | None:
    if isinstance(target, str):
        return FUNCTIONS.get(target)
    if isinstance(target, torch._ops.OpOverload):
        space, name = target._schema.name.split("::")
        if space == "torchvision":
            return FUNCTIONS.get(f"torchvision.{name}")
        return (FUNCTIONS.get(f"aten.{name}") or FUNCTIONS.get(name)) if space == "aten" else None
    if isinstance(target, torch._ops.OpOverloadPacket):
        return FUNCTIONS.get(str(target)) if str(target).startswith("torchvision.") else None
    module = getattr(target, "__module__", None) or ""
    known = module in _TRUSTED or any(getattr(space, target.__name__, None) is target for space in (torch, torch._C._nn))
    return FUNCTIONS.get(_SAME_NAME.get(target, target.__name__)) if known else None


_KEYWORDS = frozenset({"and_", "or_", "not_", "is_"})
"""Functions of `operator` that end in an underscore since their names are words of Python."""


def names_a_write(name: str) -> bool:
    """Whether torch's own way of naming says that a function or method writes into its first argument: `add_`."""
    return name.endswith("_") and not name.startswith("__") and name not in _KEYWORDS


_AUGMENTED = frozenset("iadd isub imul itruediv ifloordiv imod ipow iand ior ixor ilshift irshift".split())
"""In-place operators (`x += y`). Tensors have no `@=` that writes."""


def target_of_write(callee: str, operands: Mapping[str, Value], attrs: Mapping[str, Any]) -> Value | None:
    """Return the value that a call writes into: `x` of `x.add_(y)`, `x += y` and an activation in place, or `out`; None if it writes nothing."""
    if "out" in operands:
        return operands["out"]
    name = short_name(callee)
    writes = names_a_write(name) or name in _AUGMENTED or attrs.get("inplace")
    return next(iter(operands.values()), None) if writes else None


def module_callee(module: nn.Module) -> str:
    """Name a module in messages: its class, and what keeps irtool from knowing it by that."""
    if isinstance(module, OwnBackward):
        return f"{module.function.__name__}.apply (a function with a backward of its own)"
    name = type(module).__name__
    return f"{name} with forward hooks (handle.remove() before tracing takes one off)" if hooked(module) else name


def callee(target: Any) -> str:
    """The torch name of a call target, for messages."""
    if isinstance(target, str | torch._ops.OpOverload):
        return str(target)
    module = getattr(target, "__module__", "") or ""
    return f"{module}.{getattr(target, '__name__', target)}".lstrip(".")
