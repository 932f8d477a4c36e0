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
from onnx import NodeProto, TypeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from irtool.errors import GraphError

Array = NDArray[Any]
Typed = tuple[int, tuple[int, ...]]
"""An element type (`TensorProto.DataType`) and a shape."""
LARGEST = 1 << 28
"""Values above this many entries are refused: a file that asks for them is broken, or means to exhaust the memory."""


def proto_of(node: gs.Node) -> NodeProto:
    """The node in ONNX's own form."""
    made: NodeProto = OnnxExporter.export_node(node)
    return made


def element_type(dtype: Any) -> int:
    """ONNX's number of a numpy element type."""
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def infer(node: NodeProto, types: Mapping[str, Typed], known: Mapping[str, Array], opset: int) -> list[Typed | None]:
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
    return [_concrete(found.get(name)) for name in node.output]


def _concrete(kind: TypeProto | None) -> Typed | None:
    if kind is None or not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    if not all(dim.HasField("dim_value") for dim in dims):
        return None
    return kind.tensor_type.elem_type, tuple(dim.dim_value for dim in dims)


def check_size(shape: Sequence[int], where: str) -> None:
    """Refuse sizes that no machine holds. Raises GraphError."""
    if any(size < 0 for size in shape) or math.prod(shape) > LARGEST:
        raise GraphError(f"a value of shape {tuple(shape)}", where=where, remedy="Check the file, or give smaller example sizes.")


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
