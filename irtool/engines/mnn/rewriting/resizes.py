"""Rule for resizing images in ways that MNN does not know: as products with the weights of each row and column."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper

from irtool.engines.mnn.rewriting.work import Work, attributes, real_numbers
from irtool.hosts.onnx.running.interpreter import run_model

_LARGEST = 1 << 22
"""Entries of a matrix of weights at most."""


def resize(work: Work, node: NodeProto) -> list[NodeProto] | None:
    """Multiply by what resizing makes of a unit matrix, along each axis, where the sizes of image and result are known.

    What onnxruntime makes of it are the weights themselves, so that every way of resizing that treats axes apart is served.
    """
    values = attributes(node)
    if not _is_foreign(values):
        return None
    before, after = work.sizes.get(node.input[0]), work.sizes.get(node.output[0])
    if before is None or after is None or len(before) != 4 or None in before[2:] or None in after[2:] or before[1] != after[1]:
        return None
    matrices = [_weights(work, node, axis, (before[axis] or 0, after[axis] or 0)) for axis in (2, 3)]
    if any(matrix is None for matrix in matrices):
        return None
    rows, columns = (np.ascontiguousarray(matrix) for matrix in matrices if matrix is not None)
    stretched = work.inner(node, "stretched")
    across = work.held(node, "columns", np.ascontiguousarray(columns.T))
    return [
        helper.make_node("MatMul", [node.input[0], across], [stretched], stretched),
        helper.make_node("MatMul", [work.held(node, "rows", rows), stretched], list(node.output), node.name),
    ]


def _is_foreign(values: dict[str, Any]) -> bool:
    """Whether MNN refuses or misreads this way of resizing."""
    nearest = values.get("mode", "nearest") == "nearest"
    return (
        values.get("mode") == "cubic"
        or bool(values.get("antialias"))
        or values.get("coordinate_transformation_mode") == "half_pixel_symmetric"
        or (nearest and values.get("nearest_mode") == "ceil")
        or values.get("keep_aspect_ratio_policy", "stretch") != "stretch"
    )


def _weights(work: Work, node: NodeProto, axis: int, lengths: tuple[int, int]) -> NDArray[Any] | None:
    """The matrix (new length, old length) by which an axis is resized; None where its factor is not a constant."""
    if lengths[0] * lengths[1] > _LARGEST:
        return None
    listed = [node.input[index] if len(node.input) > index else "" for index in (2, 3)]
    scales = None if not listed[0] else real_numbers(work.model, listed[0])
    axes = attributes(node).get("axes", [0, 1, 2, 3])
    names, held = ["x", "", ""], dict[str, NDArray[Any]]()
    if scales is not None and scales.size:
        place = [entry % 4 for entry in axes].index(axis) if axis in [entry % 4 for entry in axes] else None
        factor = 1.0 if place is None else float(scales[place])
        names[2], held["scales"] = "scales", np.array([1, 1, factor, 1], np.float32)
    else:
        names.append("sizes")
        held["sizes"] = np.array([1, 1, lengths[1], lengths[0]], np.int64)
    resized = helper.make_node("Resize", names, ["y"])
    skipped = ("axes", "keep_aspect_ratio_policy")  # these say what is resized, and how far, which is known here
    resized.attribute.extend(attribute for attribute in node.attribute if attribute.name not in skipped)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [resized],
        "weights",
        [value("x", onnx.TensorProto.FLOAT, [1, 1, lengths[0], lengths[0]])],
        [value("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in held.items()],
    )
    model = helper.make_model(graph, opset_imports=work.model.opset_import, ir_version=work.model.ir_version)
    found: NDArray[Any] = run_model(model, {"x": np.eye(lengths[0], dtype=np.float32)[None, None]})[0][0, 0]
    return found if found.shape == (lengths[1], lengths[0]) else None
