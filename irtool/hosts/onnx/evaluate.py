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
Open = tuple[int, tuple[int | None, ...]]
"""The same with None for each size that is not known."""
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
