"""Workarounds for what MNN's converter misreads: the same numbers by other operators or attributes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from irtool.engines.mnn.rewrites import known_sizes, rewrite, whole_numbers

_AXIS_ONE_BEFORE_13 = ("Softmax", "LogSoftmax", "Hardmax")


def worked_around(model: onnx.ModelProto, source: Path, folder: Path) -> Path:
    """The file to convert: `source`, or a copy of it in `folder` with what MNN misreads in other words; `model` is changed.

    Files with weights beside them are left as they are: a copy in another folder would not find these.
    """
    if any(tensor.external_data for tensor in model.graph.initializer):
        return source
    if not any([rewrite(model), _explicit_axes(model), _flips_by_index(model)]):
        return source
    path = folder / "worked_around.onnx"
    onnx.save(model, str(path))
    return path


def _explicit_axes(model: onnx.ModelProto) -> bool:
    """Each softmax says its axis: the converter takes a missing one for the last, and before opset 13 it was 1."""
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=13)
    silent = [n for n in model.graph.node if n.op_type in _AXIS_ONE_BEFORE_13 and not any(a.name == "axis" for a in n.attribute)]
    for node in silent if opset < 13 else ():
        node.attribute.append(helper.make_attribute("axis", 1))
    return opset < 13 and bool(silent)


def _flips_by_index(model: onnx.ModelProto) -> bool:
    """A slice with a negative step (a flip) becomes gathers: MNN 3.6 writes beside its memory there when the batch changes.

    Only where the sizes of the sliced axes are known; others are left, and found out when the file is run.
    """
    constants = dict(whole_numbers(model))
    if not any(_goes_back(node, constants) for node in model.graph.node):
        return False
    sizes, nodes = known_sizes(model), []
    for node in model.graph.node:
        nodes += (_gathers(node, constants, sizes, model) if _goes_back(node, constants) else None) or [node]
    copies = [helper.make_node("", [], []) for _ in nodes]
    for copy, node in zip(copies, nodes, strict=True):
        copy.CopyFrom(node)
    changed = len(copies) != len(model.graph.node) or any(
        new.op_type != old.op_type for new, old in zip(copies, model.graph.node, strict=True)
    )
    model.graph.ClearField("node")
    model.graph.node.extend(copies)
    return changed


def _goes_back(node: NodeProto, constants: dict[str, list[int]]) -> bool:
    return node.op_type == "Slice" and min(constants.get("".join(node.input[4:5]), [1])) < 0


def _gathers(
    node: NodeProto, constants: dict[str, list[int]], sizes: dict[str, list[int | None]], model: onnx.ModelProto
) -> list[NodeProto]:
    """Gathers that select what a slice does, one for each axis; none if the bounds or a size are not known."""
    held = [constants.get(name) for name in node.input[1:]]
    shape = sizes.get(node.input[0])
    if shape is None or any(numbers is None for numbers in held):
        return []
    starts, ends, axes, steps = (numbers or [] for numbers in held)
    if any(shape[axis] is None for axis in axes):
        return []
    made: list[NodeProto] = []
    for number, (start, end, axis, step) in enumerate(zip(starts, ends, axes, steps, strict=True)):
        last = number == len(axes) - 1
        name = node.output[0] if last else f"{node.output[0]}_axis_{axis}"
        index = numpy_helper.from_array(
            np.array(_positions(start, end, step, shape[axis] or 0), np.int64), f"{node.output[0]}_positions_{axis}"
        )
        model.graph.initializer.append(index)
        before = made[-1].output[0] if made else node.input[0]
        made.append(helper.make_node("Gather", [before, index.name], [name], name=node.name if last else name, axis=axis))
    return made


def _positions(start: int, end: int, step: int, size: int) -> range:
    """Return the bounds of ONNX's Slice within an axis: those below zero count from its end, those outside are moved to its border."""
    low, high = (-1, size - 1) if step < 0 else (0, size)
    start, end = (bound + size if bound < 0 else bound for bound in (start, end))
    return range(min(max(start, 0), high), min(max(end, low), high), step)
