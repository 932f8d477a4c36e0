"""Sizes that an ONNX program computes though no input can change them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import ModelProto

from irtool.hosts.onnx.evaluate import Array, Budget, proto_of, run_node
from irtool.hosts.onnx.file import is_large, stored_bytes
from irtool.hosts.onnx.normalize import STANDARD, fold_constants, settle

_MOVES = frozenset({"Gather", "Slice", "Unsqueeze", "Squeeze", "Concat", "Cast", "Identity", "Reshape"})
"""Operators that only move entries: each entry of the result is one of the arguments'."""
_UNKNOWN = (-(2**31) + 1, -(2**31) + 3)
"""A free size stands for these two numbers in two runs: an entry that is alike in both depends on none."""


def settle_shapes(host: gs.Graph, proto: ModelProto) -> int:
    """Make initialisers, in place, of the results of Shape and of what moves its entries, where ONNX's symbolic shape
    inference says that they are the same for every input; then of what is computed from those. Returns how many nodes went.
    """
    if is_large(proto):
        return 0  # onnx cannot infer shapes in a model of that size
    before = len(host.nodes)
    found = _known(host, _dimensions(proto))
    for node in list(host.nodes):
        pair = found.get(node.outputs[0].name) if node.outputs else None
        if pair is not None and np.array_equal(*pair) and not any(output in host.outputs for output in node.outputs):
            settle(node, [pair[0]], host)
    host.cleanup()
    fold_constants(host, Budget(stored_bytes(proto)))
    host.cleanup()
    return before - len(host.nodes)


def _dimensions(proto: ModelProto) -> dict[str, list[int | None]]:
    """The sizes of every value, None where they depend on the inputs."""
    try:
        graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    except onnx.shape_inference.InferenceError:
        return {}
    found = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape"):
            found[value.name] = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
    return found


def _known(host: gs.Graph, sizes: dict[str, list[int | None]]) -> dict[str, tuple[Array, Array]]:
    """What each shape-like value holds in two runs that differ in the free sizes alone."""
    found: dict[str, tuple[Array, Array]] = {}
    for node in host.nodes:
        if node.domain not in STANDARD or len(node.outputs) != 1:
            continue
        name = node.outputs[0].name
        if node.op == "Shape" and node.inputs[0].name in sizes:
            dims = sizes[node.inputs[0].name][node.attrs.get("start", 0) : node.attrs.get("end")]
            first, second = (np.array([unknown if dim is None else dim for dim in dims], np.int64) for unknown in _UNKNOWN)
            found[name] = (first, second)
        elif node.op in _MOVES and any(tensor.name in found for tensor in node.inputs):
            pair = _moved(node, found, host.opset)
            if pair is not None:
                found[name] = pair
    return found


def _moved(node: gs.Node, found: dict[str, tuple[Array, Array]], opset: int) -> tuple[Array, Array] | None:
    results = []
    for run in (0, 1):
        inputs = {}
        for place, tensor in enumerate(t for t in node.inputs if t.name):
            if tensor.name in found and (place == 0 or node.op == "Concat"):
                inputs[tensor.name] = found[tensor.name][run]
            elif isinstance(tensor, gs.Constant):
                inputs[tensor.name] = np.asarray(tensor.values)
            else:
                return None  # moved by something that is computed
        try:
            results.append(np.asarray(run_node(proto_of(node), inputs, opset)[0]))
        except Exception:  # whatever the evaluator raises: what it cannot compute stays
            return None
    return results[0], results[1]
