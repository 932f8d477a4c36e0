"""An ONNX program whose real numbers are float32: float16 rounds too much to show an error, and of float64 onnxruntime has little."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from onnx import ModelProto, TensorProto

from irtool.hosts.onnx.files.subgraphs import bodies

_OTHER = {TensorProto.FLOAT16: "float16", TensorProto.DOUBLE: "float64", TensorProto.BFLOAT16: "bfloat16"}
"""Types of real numbers that are exchanged, by ONNX's number for them: the names that they have where numpy knows them."""
_NUMBERED = ("to", "dtype")
"""Attributes that hold a type's number: of casts, and of what makes tensors."""


def other_widths(host: gs.Graph) -> bool:
    """Whether a program has real numbers of another width than float32."""
    held = any(map(_is_other, host.tensors().values()))
    cast = any(node.op == "Cast" and node.attrs.get("to") == TensorProto.BFLOAT16 for node in host.nodes)  # what it makes may have no type
    return held or cast or any(other_widths(body) for node in host.nodes for body in bodies(node))


def _is_other(tensor: gs.Tensor) -> bool:
    """Whether a tensor's numbers are exchanged. Of a type that numpy does not know graphsurgeon keeps ONNX's number."""
    dtype = tensor.dtype
    return dtype in _OTHER if isinstance(dtype, int) else dtype is not None and np.dtype(dtype).name in _OTHER.values()


def put_float32(host: gs.Graph) -> None:
    """Let a program, and the bodies of its control flow, compute in float32, in place."""
    made: dict[int, gs.Constant] = {}
    for tensor in host.tensors().values():
        if not _is_other(tensor):
            continue
        if isinstance(tensor, gs.Constant):  # how it is written is settled when it is made
            made[id(tensor)] = gs.Constant(tensor.name, np.asarray(tensor.values).astype(np.float32))
        else:
            tensor.dtype = np.float32
    host.outputs = [made.get(id(tensor), tensor) for tensor in host.outputs]
    for node in host.nodes:
        node.inputs = [made.get(id(tensor), tensor) for tensor in node.inputs]
        for name, value in node.attrs.items():
            if name in _NUMBERED and value in _OTHER:
                node.attrs[name] = int(TensorProto.FLOAT)
            elif isinstance(value, gs.Constant) and _is_other(value):
                node.attrs[name] = gs.Constant(value.name, np.asarray(value.values).astype(np.float32))
        for body in bodies(node):
            put_float32(body)


def stating_float32(header: ModelProto) -> ModelProto:
    """A copy of a file's own description, with float32 for the inputs and outputs of other widths."""
    made = ModelProto()
    made.CopyFrom(header)
    for info in (*made.graph.input, *made.graph.output, *made.graph.value_info):
        if info.type.tensor_type.elem_type in _OTHER:
            info.type.tensor_type.elem_type = TensorProto.FLOAT
    return made
