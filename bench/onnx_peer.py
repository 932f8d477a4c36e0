"""onnxsim's structured pruning on the same model, for the side-by-side table of bench/onnx_files.py.

onnxsim does not say which channels it removed. With weights that are all different this can be read off: every entry of a
pruned weight is found again in the original. So a noise of a thousandth is added to the weights first (dead filters are alike). The reference is the original with those channels multiplied by 0 in front of
each layer that no longer reads them, run in onnxruntime.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, NodeProto, helper, numpy_helper

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def installed() -> str:
    """The version of onnxsim, or "" if it is absent."""
    try:
        return version("onnxsim")
    except PackageNotFoundError:
        return ""


@dataclass(frozen=True)
class Peer:
    """Read what onnxsim did: layers that lost outputs, parameters before and after, and how far from its masked original it is."""

    cut: int
    before: int
    after: int
    error: float | str


def prune(model: ModelProto, ratio: float, feed: dict[str, np.ndarray]) -> Peer:
    """Simplify (which folds batch norms), prune, compare."""
    import onnxsim

    simple, _ = onnxsim.simplify(model)
    rng = np.random.default_rng(0)
    for tensor in simple.graph.initializer:
        if len(tensor.dims) > 1 and tensor.data_type == onnx.TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor)
            noisy = array + rng.normal(0, 1e-3 * float(array.std()) + 1e-9, array.shape).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(noisy, tensor.name))
    original = ModelProto.FromString(simple.SerializeToString())
    small = onnxsim.apply_structured_pruning(simple, ratio, importance_norm="l2")
    old, new = _weights(original), _weights(small)
    cut, masks = 0, {}
    for node in original.graph.node:
        if node.op_type in LAYERS and len(node.input) > 1 and node.input[1] in old and node.input[1] in new:
            outputs, inputs = _outputs_inputs(node, old[node.input[1]], new[node.input[1]])
            cut += outputs
            if inputs is not None:
                masks[node.name or node.output[0]] = inputs
    return Peer(cut, _count(old), _count(new), _error(original, small, masks, feed))


def _weights(model: ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _count(weights: dict[str, np.ndarray]) -> int:
    return sum(array.size for array in weights.values() if array.dtype == np.float32)


def _outputs_inputs(node: NodeProto, old: np.ndarray, new: np.ndarray) -> tuple[bool, np.ndarray | None]:
    """Whether the layer lost outputs, and which inputs it still reads (None: all)."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if old.shape == new.shape:
        return False, None
    transposed = node.op_type in ("ConvTranspose", "MatMul") or (node.op_type == "Gemm" and not attributes.get("transB", 0))
    if transposed:
        old, new = np.swapaxes(old, 0, 1), np.swapaxes(new, 0, 1)
    groups = int(attributes.get("group", 1))
    if transposed and groups > 1:
        return True, None  # onnxsim leaves these alone
    if groups > 1 and old.shape[1] == 1:  # depthwise: what it no longer makes, somebody no longer reads
        return new.shape[0] < old.shape[0], None
    rows, columns = _found(_kernels(old), _kernels(new), groups)
    mask = np.zeros(old.shape[1] * groups, np.float32)
    mask[columns] = 1
    return len(rows) < old.shape[0], None if mask.all() else mask


def _kernels(weight: np.ndarray) -> np.ndarray:
    """One number for each kernel, equal for equal kernels only (but for odds that do not matter here)."""
    flat = weight.reshape(*weight.shape[:2], -1).astype(np.float64)
    return (flat * np.random.default_rng(0).normal(size=flat.shape[2])).sum(2)


def _found(old: np.ndarray, new: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Find which rows of the old matrix are in the new one, and which inputs (group by group) its columns read."""
    rows, reads = _lines_of(old, new), []
    for group, lines in enumerate(np.array_split(new, groups)):
        own = old[np.array_split(rows, groups)[group]]
        columns = _lines_of(own.T, lines.T)
        if not np.array_equal(own[:, columns], lines):
            raise ValueError("a pruned weight is no part of the original")
        reads.append(columns + group * old.shape[1])
    return rows, np.concatenate(reads)


def _lines_of(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """For each line of the new matrix, the line of the old one that has most of its entries."""
    values, first = np.unique(old, return_index=True)
    owners = first // old.shape[1]
    places = np.minimum(np.searchsorted(values, new), len(values) - 1)
    found = [int(np.bincount(owners[line]).argmax()) for line in places]
    for index, wanted in enumerate(new):
        if not np.isin(wanted, old[found[index]]).all():  # dead filters: one number throughout, which others have too
            found[index] = int(np.isin(old, wanted).sum(1).argmax())
    return np.array(found)


def _error(original: ModelProto, small: ModelProto, masks: dict[str, np.ndarray], feed: dict[str, np.ndarray]) -> float | str:
    """The largest difference of any output over the largest output, or why there is none."""
    try:
        onnx.checker.check_model(small, full_check=True)
        places = [_before_saturation(original, output.name) for output in original.graph.output]
        expected, got = _run(_masked(original, masks), places, feed), _run(small, places, feed)
    except Exception as error:  # whatever the checker and onnxruntime raise on a broken file
        return f"broken: {' '.join(str(error).split())[:60]}"
    if any(a.shape != b.shape for a, b in zip(expected, got, strict=True)):
        return "other output sizes"
    return max(float(np.abs(a - b).max()) for a, b in zip(expected, got, strict=True)) / max(
        max(float(np.abs(a).max()) for a in expected), 1e-30
    )


def _masked(model: ModelProto, masks: dict[str, np.ndarray]) -> ModelProto:
    copy = ModelProto.FromString(model.SerializeToString())
    nodes = []
    for node in copy.graph.node:
        mask = masks.get(node.name or node.output[0])
        if mask is not None:
            name = f"{node.output[0]}.mask"
            weight = next(t for t in copy.graph.initializer if t.name == node.input[1])
            shape = (1, -1, *(1,) * (len(weight.dims) - 2)) if node.op_type.startswith("Conv") else (-1,)
            copy.graph.initializer.append(numpy_helper.from_array(mask.reshape(shape), name))
            nodes.append(helper.make_node("Mul", [node.input[0], name], [f"{name}ed"]))
            node.input[0] = f"{name}ed"
        nodes.append(node)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _before_saturation(model: ModelProto, output: str) -> str:
    node = next((node for node in model.graph.node if output in node.output), None)
    return node.input[0] if node is not None and node.op_type in ("Sigmoid", "Softmax") else output


def _run(model: ModelProto, names: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    model = ModelProto.FromString(model.SerializeToString())
    present = {output.name for output in model.graph.output}
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(names) if name not in present)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(names, feed)
