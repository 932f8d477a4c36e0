"""What each ONNX operator is in the view: its name there, the roles of its inputs, and its attributes by the names that rules read.

One row an operator. A role `-` is an argument (sizes, indices, bounds): it is no tensor that flows, and its value is read
into the attributes. A last role with `*` collects the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray


class Unreadable(Exception):
    """The node has a form that no rule serves; the text is the reason. It becomes a barrier."""


class Call(Protocol):
    """A host node as the rows below see it."""

    opset: int
    op: str

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute of the host node."""

    def known(self, index: int) -> NDArray[Any] | None:
        """The value of an input that is a constant or computed from shapes; None if the input is absent or flows."""

    def given(self, index: int) -> bool:
        """Whether there is such an input."""

    def shape(self, index: int) -> tuple[int, ...]:
        """The shape of an input."""

    def result(self, index: int = 0) -> tuple[int, ...]:
        """The shape of an output."""

    def results(self) -> int:
        """How many outputs the node lists."""

    def is_read(self, index: int) -> bool:
        """Whether a node or the model's caller reads an output."""


Attrs = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """How to read a node: operator in the view, roles of the inputs, attributes."""

    op: str
    roles: tuple[str, ...]
    attrs: Callable[[Call], Attrs]


def _none(call: Call) -> Attrs:
    return {}


def _argument(call: Call, index: int, name: str) -> Any:
    """An argument as plain numbers: the input `index`, or in older operator sets the attribute `name`; None if absent.

    Raises:
        Unreadable: it is computed from data.
    """
    if call.given(index):
        value = call.known(index)
        if value is None:
            raise Unreadable(f"{call.op} whose {name} are computed from data")
        return value.tolist()
    return call.attr(name)


def _window(call: Call) -> Attrs:
    """Strides, dilations, and the padding at the beginning of each axis."""
    axes = len(call.shape(1)) - 2
    kernel = call.attr("kernel_shape") or call.shape(1)[2:]
    stride, dilation = (tuple(call.attr(name) or (1,) * axes) for name in ("strides", "dilations"))
    pads = tuple(call.attr("pads") or (0,) * (2 * axes))[:axes]
    same = call.attr("auto_pad", "NOTSET")
    if same.startswith("SAME") and call.op == "Conv":
        need = [
            max((out - 1) * s + (k - 1) * d + 1 - size, 0)
            for out, s, k, d, size in zip(call.result()[2:], stride, kernel, dilation, call.shape(0)[2:], strict=True)
        ]
        pads = tuple(n - n // 2 if same == "SAME_LOWER" else n // 2 for n in need)
    found: Attrs = {"groups": int(call.attr("group", 1)), "stride": stride, "padding": pads, "dilation": dilation}
    if call.op == "ConvTranspose" and (same != "NOTSET" or call.attr("output_shape")):
        found["computed_padding"] = True
    return found


def _gemm(call: Call) -> Attrs:
    if call.attr("transA", 0) or call.attr("alpha", 1.0) != 1.0 or (call.given(2) and call.attr("beta", 1.0) != 1.0):
        raise Unreadable("Gemm with a transposed first factor or scaled factors")
    if call.given(2) and (len(call.shape(2)) != 1 or call.shape(2) != call.result()[1:]):
        raise Unreadable("Gemm whose third factor is no bias a channel")
    return {} if call.attr("transB", 0) else {"transposed": True}


def _batchnorm(call: Call) -> Attrs:
    """Before opset 14 a batch norm that lists its statistics among its outputs is in training mode: no attribute says so."""
    if call.attr("training_mode", 0) or (call.opset < 14 and call.results() > 1):
        raise Unreadable("batch norm in training mode")
    if not call.attr("spatial", 1):
        raise Unreadable("batch norm with statistics for each position")
    return {"eps": call.attr("epsilon", 1e-5)}


def _eps(call: Call) -> Attrs:
    return {"eps": call.attr("epsilon", 1e-5)}


def _layernorm(call: Call) -> Attrs:
    if any(call.is_read(index) for index in range(1, call.results())):
        raise Unreadable(f"{call.op} that gives its statistics, too")
    shape = call.shape(0)
    return {"normalized_shape": shape[call.attr("axis", -1) % len(shape) :], **_eps(call)}


def _groupnorm(call: Call) -> Attrs:
    if call.opset < 21:
        raise Unreadable("group norm with a scale a group")
    return {"num_groups": int(call.attr("num_groups")), **_eps(call)}


def _softmax(call: Call) -> Attrs:
    """Before opset 13 the axes from `axis` on count as one, which is softmax over one axis if the rest have one entry."""
    shape = call.shape(0)
    if call.opset >= 13:
        return {"dim": call.attr("axis", -1)}
    axis = call.attr("axis", 1) % len(shape)
    long = [d for d in range(axis, len(shape)) if shape[d] > 1]
    if len(long) > 1:
        raise Unreadable(f"{call.op} over several axes")
    return {"dim": long[0] if long else axis}


def _axis(default: int) -> Callable[[Call], Attrs]:
    return lambda call: {"dim": call.attr("axis", default)}


def _cumsum(call: Call) -> Attrs:
    found = _argument(call, 1, "axis")
    return {"dim": int(found if isinstance(found, int) else found[0])}


def _reduce(call: Call) -> Attrs:
    axes = _argument(call, 1, "axes")
    if not axes and call.attr("noop_with_empty_axes", 0):
        raise Unreadable(f"{call.op} over no axes")
    return {"dim": tuple(axes) if axes else None, "keepdim": bool(call.attr("keepdims", 1))}


def _arg_reduce(call: Call) -> Attrs:
    return {"dim": (call.attr("axis", 0),), "keepdim": bool(call.attr("keepdims", 1))}


def _sizes(name: str) -> Callable[[Call], Attrs]:
    return lambda call: {name: _argument(call, 1, name)}


def _resize(call: Call) -> Attrs:
    """Scales, or the sizes that the result has; where both are computed from data, the sizes are those of the example."""
    for index in (1, 2, 3):
        if call.given(index) and call.known(index) is None:
            raise Unreadable(f"{call.op} to a size computed from data")
    return {"mode": call.attr("mode", "nearest"), "size": call.result()}


def _split(call: Call) -> Attrs:
    return {"dim": call.attr("axis", 0), "sizes": _argument(call, 1, "split")}


def _slice(call: Call) -> Attrs:
    found = {name: _argument(call, index, name) for index, name in enumerate(("starts", "ends", "axes", "steps"), 1)}
    return {name: value for name, value in found.items() if value is not None}


def _gather(call: Call) -> Attrs:
    if call.known(1) is None:
        raise Unreadable("Gather at indices computed from data")
    return {"dim": call.attr("axis", 0)}


def _pad(call: Call) -> Attrs:
    """Amounts in torch's order: from the last axis backwards, (before, after) each."""
    pads, rank = _argument(call, 1, "pads"), len(call.shape(0))
    axes = _argument(call, 3, "axes") if call.given(3) else range(rank)
    amounts = dict.fromkeys(range(rank), (0, 0))
    for place, axis in enumerate(axes):
        amounts[axis % rank] = (pads[place], pads[place + len(axes)])
    return {"pad": tuple(n for axis in reversed(range(rank)) for n in amounts[axis]), "mode": call.attr("mode", "constant")}


def _depth(call: Call) -> Attrs:
    return {"blocksize": call.attr("blocksize"), "mode": call.attr("mode", "DCR")}


def _expand(call: Call) -> Attrs:
    return {"sizes": _argument(call, 1, "sizes")}


def _clip(call: Call) -> Attrs:
    for index in (1, 2):
        if call.given(index) and call.known(index) is None:
            raise Unreadable("Clip between computed bounds")
    bounds = [call.known(index) for index in (1, 2)]
    low, high = (call.attr(name) if bound is None else float(bound) for name, bound in zip(("min", "max"), bounds, strict=True))
    return {name: bound for name, bound in (("min", low), ("max", high)) if bound is not None}


def _dropout(call: Call) -> Attrs:
    """Random only where the file asks for training mode, or computes whether to."""
    training = call.known(2)
    return {"training": True} if call.given(2) and (training is None or bool(training)) else {}


def _prelu(call: Call) -> Attrs:
    return {"broadcast": True}


def _einsum(call: Call) -> Attrs:
    return {"equation": call.attr("equation")}


def _quantise(call: Call) -> Attrs:
    if len(call.shape(1)) == 1 and math.prod(call.shape(1)) > 1:
        raise Unreadable("computed scales for each channel")
    if math.prod(call.shape(1)) > 1:
        raise Unreadable("a scale a block")
    return {}


UNARY = """Relu LeakyRelu Elu Selu Celu Gelu Mish Sigmoid Tanh HardSigmoid HardSwish Swish Softplus Softsign Exp Log Sqrt Abs Neg Erf Reciprocal Floor
Ceil Round Sign Sin Cos Tan Asin Acos Atan Sinh Cosh Asinh Acosh Atanh ThresholdedRelu Shrink Identity Cast Not IsNaN IsInf BitwiseNot"""
VARIADIC = "Add Sub Mul Div Pow Mod Max Min Sum Mean Equal Less Greater LessOrEqual GreaterOrEqual And Or Xor BitwiseAnd BitwiseOr BitwiseXor BitShift Where"
ELEMENTWISE = frozenset((UNARY + " " + VARIADIC).split()) | {"Clip", "CastLike", "Dropout", "QuantizeLinear", "DequantizeLinear"}
"""Operators that treat every position alike, under their own names."""

REDUCTIONS = {
    "ReduceMean": "mean", "ReduceSum": "sum", "ReduceMax": "amax", "ReduceMin": "amin", "ReduceProd": "prod", "ReduceL1": "l1", "ReduceL2": "l2",
    "ReduceLogSum": "logsum", "ReduceLogSumExp": "logsumexp", "ReduceSumSquare": "sumsquare",
}  # fmt: skip
"""Reductions, and what rules and messages call them."""


def _row(op: str, roles: str, attrs: Callable[[Call], Attrs] = _none) -> Row:
    return Row(op, tuple(roles.split()), attrs)


ROWS: dict[str, Row] = {
    **{op: _row(op, "input") for op in UNARY.split()},
    **{op: _row(op, "input *other") for op in VARIADIC.split()},
    **{op: _row("Reduce", "input -", _reduce) for op in REDUCTIONS},
    **{op: _row("Reduce", "input", _arg_reduce) for op in ("ArgMax", "ArgMin")},
    **{op: _row("Pool", "input") for op in ("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")},
    **{op: _row("Softmax", "input", _softmax) for op in ("Softmax", "LogSoftmax", "Hardmax")},
    **{op: _row(op, "input - -", _quantise) for op in ("QuantizeLinear", "DequantizeLinear")},
    "Clip": _row("Clip", "input - -", _clip),
    "CastLike": _row("CastLike", "input -"),
    "Dropout": _row("Dropout", "input - -", _dropout),
    "PRelu": _row("PRelu", "input weight", _prelu),
    "Conv": _row("Conv", "input weight bias", _window),
    "ConvTranspose": _row("ConvTranspose", "input weight bias", _window),
    "Gemm": _row("Gemm", "input weight bias", _gemm),
    "MatMul": _row("MatMul", "input other"),
    "Einsum": _row("Einsum", "*operands", _einsum),
    "BatchNormalization": _row("BatchNormalization", "input weight bias running_mean running_var", _batchnorm),
    "InstanceNormalization": _row("InstanceNormalization", "input weight bias", _eps),
    "LayerNormalization": _row("LayerNormalization", "input weight bias", _layernorm),
    "RMSNormalization": _row("RMSNormalization", "input weight", _layernorm),
    "GroupNormalization": _row("GroupNormalization", "input weight bias", _groupnorm),
    "LRN": _row("LRN", "input"),
    "LpNormalization": _row("LpNormalization", "input", _axis(-1)),
    "CumSum": _row("Cumsum", "input -", _cumsum),
    "Resize": _row("Resize", "input - - -", _resize),
    "Upsample": _row("Resize", "input -", _resize),
    "Reshape": _row("Reshape", "input -", _sizes("shape")),
    "Flatten": _row("Reshape", "input"),
    "Squeeze": _row("Reshape", "input -", _sizes("axes")),
    "Unsqueeze": _row("Reshape", "input -", _sizes("axes")),
    "Transpose": _row("Transpose", "input", lambda call: {"dims": call.attr("perm")}),
    "Concat": _row("Concat", "*tensors", _axis(0)),
    "Split": _row("Split", "input -", _split),
    "Slice": _row("Slice", "input - - - -", _slice),
    "Gather": _row("Gather", "input index", _gather),
    "Expand": _row("Expand", "input -", _expand),
    "Tile": _row("Expand", "input -", _expand),
    "Pad": _row("Pad", "input - - -", _pad),
    "DepthToSpace": _row("DepthToSpace", "input", _depth),
    "SpaceToDepth": _row("SpaceToDepth", "input", _depth),
}  # fmt: skip
