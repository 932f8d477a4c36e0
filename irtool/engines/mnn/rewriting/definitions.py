"""Operators in the words of others: local functions, and those of ONNX's own operators that ONNX defines so."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import onnx
from onnx import FunctionProto, NodeProto, TypeProto, helper, inliner

_DOMAIN = "irtool.definitions"
"""Of functions that stand in a model for a moment."""


def inlined(model: onnx.ModelProto, operators: Collection[str] = ()) -> bool:
    """Put in place what local functions do, and ONNX's own definitions of some operators.

    Args:
        model: changed in place.
        operators: names of ONNX's operators; those that it defines by no others stay.

    Returns:
        Whether anything was put in place.
    """
    wanted = [node for node in model.graph.node if node.domain in ("", "ai.onnx") and node.op_type in operators]
    types = _types(model) if wanted else {}
    for number, node in enumerate(wanted):
        found = _definition(node, types, _opset(model))
        if found is not None:
            found.domain, found.name = _DOMAIN, f"{node.op_type}_{number}"
            node.domain, node.op_type = found.domain, found.name
            model.functions.append(found)
    if not model.functions:
        return False
    if any(function.domain == _DOMAIN for function in model.functions):
        model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    model.CopyFrom(inliner.inline_local_functions(model))
    kept = [entry for entry in model.opset_import if entry.domain != _DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    return True


def _definition(node: NodeProto, types: dict[str, TypeProto], opset: int) -> FunctionProto | None:
    """The function by which ONNX defines a node, in other operators of this set; None where there is none."""
    try:
        schema: Any = onnx.defs.get_schema(node.op_type, opset)  # its types are declared without its functions
    except onnx.defs.SchemaError:
        return None
    if schema.has_context_dependent_function:
        if any(name and name not in types for name in node.input):
            return None
        given = [(types[name] if name else TypeProto()).SerializeToString() for name in node.input]
        usable = [version for version in schema.context_dependent_function_opset_versions if version <= opset]
        text = schema.get_context_dependent_function_with_opset_version(max(usable), node.SerializeToString(), given) if usable else b""
    elif schema.has_function:
        usable = [version for version in schema.function_opset_versions if version <= opset]
        text = schema.get_function_with_opset_version(max(usable)) if usable else b""
    else:
        return None
    if not text:
        return None
    found = FunctionProto()
    found.ParseFromString(text)
    del found.opset_import[:]
    found.opset_import.append(helper.make_opsetid("", opset))
    return found


def _types(model: onnx.ModelProto) -> dict[str, TypeProto]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    found = {value.name: value.type for value in (*graph.input, *graph.value_info, *graph.output)}
    return found | {tensor.name: helper.make_tensor_type_proto(tensor.data_type, tensor.dims) for tensor in graph.initializer}


def _opset(model: onnx.ModelProto) -> int:
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=13)
