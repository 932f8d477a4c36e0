"""ONNX operators in the view: the name of each, the roles of its inputs, and the reader of its attributes.

One row an operator. A role `-` is an argument (sizes, indices, bounds): it is no tensor that flows, and its value is read
into the attributes. A last role with `*` collects the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from irtool.hosts.onnx import attributes as read
from irtool.hosts.onnx.attributes import REDUCTIONS, Call
from irtool.ir.attributes import Attrs


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table: operator in the view, roles of the inputs, reader of the attributes."""

    op: str
    roles: tuple[str, ...]
    attrs: Callable[[Call], Attrs]


UNARY = """Relu LeakyRelu Elu Selu Celu Gelu Mish Sigmoid Tanh HardSigmoid HardSwish Swish Softplus Softsign Exp Log Sqrt Abs Neg Erf Reciprocal Floor
Ceil Round Sign Sin Cos Tan Asin Acos Atan Sinh Cosh Asinh Acosh Atanh ThresholdedRelu Shrink Identity Cast Not IsNaN IsInf BitwiseNot"""
VARIADIC = "Add Sub Mul Div Pow Mod Max Min Sum Mean Equal Less Greater LessOrEqual GreaterOrEqual And Or Xor BitwiseAnd BitwiseOr BitwiseXor BitShift Where"
ELEMENTWISE = frozenset((UNARY + " " + VARIADIC).split()) | {"Clip", "CastLike", "Dropout", "QuantizeLinear", "DequantizeLinear"}
"""Operators that treat every position alike, under their own names."""


def _row(op: str, roles: str, attrs: Callable[[Call], Attrs] = read.nothing) -> Row:
    return Row(op, tuple(roles.split()), attrs)


ROWS: dict[str, Row] = {
    **{op: _row(op, "input", read.ACTIVATIONS.get(op, read.nothing)) for op in UNARY.split()},
    **{op: _row(op, "input *other", read.numbers) for op in VARIADIC.split()},
    **{op: _row("Reduce", "input -", read.reduce) for op in REDUCTIONS},
    **{op: _row("Reduce", "input", read.arg_reduce) for op in ("ArgMax", "ArgMin")},
    **{op: _row("Pool", "input", read.pool) for op in ("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")},
    **{op: _row("Softmax", "input", read.softmax) for op in ("Softmax", "LogSoftmax", "Hardmax")},
    **{op: _row(op, "input - -", read.quantise) for op in ("QuantizeLinear", "DequantizeLinear")},
    "Clip": _row("Clip", "input - -", read.clip),
    "CastLike": _row("CastLike", "input -"),
    "Dropout": _row("Dropout", "input - -", read.dropout),
    "PRelu": _row("PRelu", "input weight", lambda call: {"broadcast": True}),
    "Conv": _row("Conv", "input weight bias", read.conv),
    "ConvTranspose": _row("ConvTranspose", "input weight bias", read.conv),
    "Gemm": _row("Gemm", "input weight bias", read.gemm),
    "MatMul": _row("MatMul", "input other"),
    "Einsum": _row("Einsum", "*operands", read.einsum),
    "BatchNormalization": _row("BatchNormalization", "input weight bias running_mean running_var", read.batch_norm),
    "InstanceNormalization": _row("InstanceNormalization", "input weight bias", read.norm),
    "LayerNormalization": _row("LayerNormalization", "input weight bias", read.last_axes_norm),
    "RMSNormalization": _row("RMSNormalization", "input weight", read.last_axes_norm),
    "GroupNormalization": _row("GroupNormalization", "input weight bias", read.group_norm),
    "LRN": _row("LRN", "input", read.local_norm),
    "LpNormalization": _row("LpNormalization", "input", read.lp_norm),
    "CumSum": _row("Cumsum", "input -", read.cumulated),
    "Resize": _row("Resize", "input - - -", read.resize),
    "Upsample": _row("Resize", "input -", read.resize),
    "GridSample": _row("RoiPool", "input grid"),
    "RoiAlign": _row("RoiPool", "input rois batches"),
    "Reshape": _row("Reshape", "input -", read.sizes("shape")),
    "Flatten": _row("Reshape", "input"),
    "Squeeze": _row("Reshape", "input -", read.sizes("axes")),
    "Unsqueeze": _row("Reshape", "input -", read.sizes("axes")),
    "Transpose": _row("Transpose", "input", read.transpose),
    "Concat": _row("Concat", "*tensors", read.along(0)),
    "Split": _row("Split", "input -", read.split),
    "Slice": _row("Slice", "input - - - -", read.slices),
    "Gather": _row("Gather", "input index", read.gather),
    "Expand": _row("Expand", "input -", read.sizes("sizes")),
    "Tile": _row("Expand", "input -", read.sizes("sizes")),
    "Pad": _row("Pad", "input - - -", read.pad),
    "DepthToSpace": _row("DepthToSpace", "input", read.depth),
    "SpaceToDepth": _row("SpaceToDepth", "input", read.depth),
}  # fmt: skip
