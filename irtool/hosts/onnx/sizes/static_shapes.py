"""Sizes that an ONNX program computes though no input can change them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import ModelProto

from irtool.hosts.onnx.edges import cleanup
from irtool.hosts.onnx.files.file import is_large, stored_bytes
from irtool.hosts.onnx.files.normalize import STANDARD, become_constant, fold_constants
from irtool.hosts.onnx.running.evaluate import SIZES, Array, Budget, proto_of, run_node

_MOVES = frozenset({"Gather", "Slice", "Unsqueeze", "Squeeze", "Concat", "Cast", "Identity", "Reshape"})
"""Operators that only move entries: each entry of the result is one of the arguments'."""
Dims = list[int | str]
"""Sizes: a number, or a name for one that the inputs decide. Equal names are equal sizes."""


def _runs(name: str, seen: dict[str, tuple[int, int]]) -> tuple[int, int]:
    """Return the two numbers that stand for a free size in two runs: an entry alike in both depends on none. No two names share one."""
    return seen.setdefault(name, (-(2**31) + 4 * len(seen) + 1, -(2**31) + 4 * len(seen) + 3))


def fold_shapes(host: gs.Graph, proto: ModelProto) -> int:
    """Make initialisers, in place, of the results of Shape and of what moves its entries, where ONNX's symbolic shape
    inference says that they are the same for every input; then of what is computed from those. Returns how many nodes went.
    """
    if is_large(proto):
        return 0  # onnx cannot infer shapes in a model of that size
    before = len(host.nodes)
    found = _known(host, dimensions(proto), {})
    for node in list(host.nodes):
        pair = found.get(node.outputs[0].name) if node.outputs else None
        if pair is not None and np.array_equal(*pair) and not any(output in host.outputs for output in node.outputs):
            become_constant(node, [pair[0]], host)
    cleanup(host)
    fold_constants(host, Budget(stored_bytes(proto)))
    cleanup(host)
    return before - len(host.nodes)


def fold_reshapes(host: gs.Graph, proto: ModelProto) -> int:
    """Write the sizes of each Reshape down, in place, where at most one of them is not known or that of the same axis before:
    0 stands for the size that the axis has, -1 for the rest. Returns how many were written down.
    """
    if is_large(proto):
        return 0
    sizes, seen = dimensions(proto), dict[str, tuple[int, int]]()
    found = _known(host, sizes, seen)
    names = {pair[0]: name for name, pair in seen.items()}
    count = 0
    for node in host.nodes:
        if node.op != "Reshape" or node.domain not in STANDARD or node.attrs.get("allowzero", 0) or node.inputs[1].name not in found:
            continue
        written = _written(found[node.inputs[1].name], sizes.get(node.inputs[0].name, []), names)
        if written is not None:
            node.inputs[1] = gs.Constant(f"{node.name}.sizes", written)
            count += 1
    cleanup(host)
    return count


def _written(pair: tuple[Array, Array], before: Dims, names: dict[int, str]) -> Array | None:
    written = []
    for axis, (first, second) in enumerate(zip(*(run.tolist() for run in pair), strict=True)):
        if first == second:
            written.append(first)
        elif axis < len(before) and before[axis] == names.get(first, ""):
            written.append(0)
        else:
            written.append(-1)
    return np.array(written, np.int64) if written.count(-1) <= 1 else None


def dimensions(proto: ModelProto) -> dict[str, Dims]:
    """The sizes of every value, by name where they depend on the inputs."""
    try:
        graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    except onnx.shape_inference.InferenceError:
        return {}
    found: dict[str, Dims] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape"):
            dims = enumerate(kind.shape.dim)
            found[value.name] = [d.dim_value if d.HasField("dim_value") else d.dim_param or f"{value.name}:{axis}" for axis, d in dims]
    return found


def _known(host: gs.Graph, sizes: dict[str, Dims], seen: dict[str, tuple[int, int]]) -> dict[str, tuple[Array, Array]]:
    """Return the entries of each shape-like value in two runs that differ in the free sizes alone."""
    found: dict[str, tuple[Array, Array]] = {}
    for node in host.nodes:
        if node.domain not in STANDARD or len(node.outputs) != 1:
            continue
        name = node.outputs[0].name
        if node.op == "Shape" and node.inputs[0].name in sizes:
            dims = sizes[node.inputs[0].name][node.attrs.get("start", 0) : node.attrs.get("end")]
            pairs = [_runs(dim, seen) if isinstance(dim, str) else (dim, dim) for dim in dims]
            first, second = (np.array([pair[run] for pair in pairs], np.int64) for run in (0, 1))
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
            result = np.asarray(run_node(proto_of(node), inputs, opset)[0])
        except Exception:  # whatever the evaluator raises: what it cannot compute stays
            return None
        if result.size > SIZES:
            return None  # no sizes any more, and it could double from operator to operator
        results.append(result)
    if node.op == "Cast" and not np.array_equal(results[0] == results[1], np.equal(*found[node.inputs[0].name])):
        return None  # another type rounds the stand-ins of a free size to one number
    return results[0], results[1]
