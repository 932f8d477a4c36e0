"""Single ONNX nodes: what shapes they give, and running one of them on arrays by onnx's reference evaluator."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, TypeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from irtool.errors import GraphError

Array = NDArray[Any]
Typed = tuple[int, tuple[int, ...]]
"""An element type (`TensorProto.DataType`) and a shape."""
Open = tuple[int, tuple[int | None, ...]]
"""An element type and a shape, with None for each size that is not known."""
Seen = Typed | None
"""Type of a value as a run shows it; None for a sequence of tensors."""
LARGEST = 1 << 28
"""Values above this many entries are refused: a file that asks for them is broken, or means to exhaust the memory."""
MOST_AXES = 32
"""Values of more axes are refused; numpy has 64 at most, and rules of irtool put axes in."""
SIZES = 4096
"""Constants above this many entries are no sizes: shape inference is not shown them."""
MOST_MADE = 1 << 30
"""Bytes of constants that a file may have computed while it is read, beyond four times its own."""
_SLOW = 1 << 20
"""Products of what goes in and what comes out, in entries, up to which an operator is run by onnx's reference evaluator though its
time may grow like that: much of the evaluator is loops in Python."""
_LINEAR = frozenset(
    """Abs Acos Add And Asin Atan BitShift Cast CastLike Ceil Clip Concat ConstantOfShape Cos Div Elu Equal Erf Exp Expand Flatten Floor Gather
    Greater GreaterOrEqual HardSigmoid Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mod Mul Neg Not Or Pad Pow Range
    Reciprocal ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu Reshape Round Shape Sigmoid Sign Sin Size Slice Softmax Softplus Split
    Sqrt Squeeze Sub Sum Tan Tanh Tile Transpose Unsqueeze Where Xor""".split()
)
"""Operators that the reference evaluator computes by calls of numpy over whole arrays."""
_NO_LARGER = frozenset({"Compress", "NonZero", "Unique"})
"""The sizes of these results are not told by shape inference; they hold no more entries than the input times its axes."""


def proto_of(node: gs.Node) -> NodeProto:
    """The node in ONNX's own form."""
    made: NodeProto = OnnxExporter.export_node(node)
    return made


def element_type(dtype: Any) -> int:
    """ONNX's number of a numpy element type."""
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def infer(node: NodeProto, types: Mapping[str, Typed], known: Mapping[str, Array], opset: int) -> list[Typed | None]:
    """`infer_open` where it tells all sizes of an output, else None."""
    return [closed(found) for found in infer_open(node, types, known, opset)]


def infer_open(node: NodeProto, types: Mapping[str, Open], known: Mapping[str, Array], opset: int) -> list[Open | None]:
    """Types and shapes of a node's outputs by ONNX's own shape inference; None where it cannot tell.

    Args:
        node: an operator of the standard domain.
        types: the inputs' types, by name.
        known: the values of inputs that are small constants (sizes, indices).
        opset: the version of the standard operators.

    Raises:
        GraphError: the operator does not exist in this version, or its inputs do not fit.
    """
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return [None] * len(node.output)
    typed = {name: helper.make_tensor_type_proto(kind, shape) for name, (kind, shape) in types.items()}
    data = {name: numpy_helper.from_array(np.asarray(array, order="C"), name) for name, array in known.items()}
    try:
        found = onnx.shape_inference.infer_node_outputs(schema, node, typed, data, opset_imports=[helper.make_opsetid("", opset)])
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        text = " ".join(str(error).split())[:200]
        raise GraphError(
            f"its inputs do not fit {node.op_type}: {text}", where=node.name, remedy="Check the model, or give other example sizes."
        ) from error
    except (KeyError, RuntimeError, ValueError, TypeError):
        return [None] * len(node.output)
    return [_open(found.get(name)) for name in node.output]


def _open(kind: TypeProto | None) -> Open | None:
    if kind is None or not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    return kind.tensor_type.elem_type, tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)


def closed(found: Open | None) -> Typed | None:
    """A type all of whose sizes are known, or None."""
    if found is None:
        return None
    sizes = tuple(size for size in found[1] if size is not None)
    return (found[0], sizes) if len(sizes) == len(found[1]) else None


def check_size(shape: Sequence[int], where: str) -> None:
    """Refuse sizes that no machine holds. Raises GraphError."""
    if any(size < 0 for size in shape) or math.prod(shape) > LARGEST or len(shape) > MOST_AXES:
        shown = f"{tuple(shape)}" if len(shape) <= MOST_AXES else f"{len(shape)} axes"
        raise GraphError(f"a value of shape {shown}", where=where, remedy="Check the file, or give smaller example sizes.")


class Budget:
    """The constants that may still be computed while one file is read.

    Args:
        stored: bytes of the weights that the file holds.
    """

    def __init__(self, stored: int = 0) -> None:
        self.made = MOST_MADE + 4 * stored
        self.work = 4 * self.made

    def spend(self, made: int, read: int, where: str) -> None:
        """Take bytes that are made, and bytes that are read for it. Raises GraphError if there are too few."""
        self.made -= made
        self.work -= made + read
        if min(self.made, self.work) < 0:
            raise GraphError(
                f"the constants that the file has computed take more than {MOST_MADE >> 30} GiB and four times the file",
                where=where,
                remedy="Do not trust this file; if it is yours, save it with its constants computed.",
            )


def run_constant(node: NodeProto, inputs: Mapping[str, Array], opset: int, budget: Budget) -> list[Array] | None:
    """`run_node` on constants, with the time and the memory known before; None where they are not, or are out of all proportion.

    Raises:
        GraphError: too large a result, or the budget is spent.
        Exception: whatever the operator raises.
    """
    types = {name: (element_type(array.dtype), array.shape) for name, array in inputs.items()}
    entries = sum(array.size for array in inputs.values())
    if TensorProto.STRING in [kind for kind, _ in types.values()]:
        return None  # a text of any length is one entry
    made = made_bytes = 0
    for typed in infer(node, types, {name: array for name, array in inputs.items() if array.size <= SIZES}, opset):
        kind, shape = typed or (TensorProto.INT64, (entries, max((array.ndim for array in inputs.values()), default=1) or 1))
        if (typed is None and node.op_type not in _NO_LARGER) or kind == TensorProto.STRING:
            return None
        check_size(shape, node.name)
        made += math.prod(shape)
        made_bytes += math.prod(shape) * helper.tensor_dtype_to_np_dtype(kind).itemsize
    read = sum(array.nbytes for array in inputs.values())
    if node.op_type not in _LINEAR:
        if entries * made > _SLOW or entries + made > _SLOW:
            return None
        read += 64 * entries * made
    budget.spend(made_bytes, read, node.name)
    return run_node(node, inputs, opset)


def run_node(node: NodeProto, inputs: Mapping[str, Array], opset: int) -> list[Array]:
    """Run one operator of the standard domain on arrays. Raises whatever the operator raises on them."""
    names = [name for name in dict.fromkeys(node.input) if name]
    outputs = [name for name in node.output if name]
    return _run(node.SerializeToString(), tuple((name, element_type(inputs[name].dtype), inputs[name].ndim) for name in names), opset).run(
        outputs, {name: inputs[name] for name in names}
    )  # type: ignore[return-value]


@lru_cache(maxsize=512)
def _run(data: bytes, types: tuple[tuple[str, int, int], ...], opset: int) -> ReferenceEvaluator:
    node = NodeProto.FromString(data)
    values = [helper.make_tensor_value_info(name, kind, [None] * rank) for name, kind, rank in types]
    results = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
    graph = helper.make_graph([node], "one", values, results)
    return ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]))
