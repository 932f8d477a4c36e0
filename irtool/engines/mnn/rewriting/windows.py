"""Rules for convolutions and pools: steps and borders in numbers."""

from __future__ import annotations

from typing import Any

from onnx import NodeProto, helper

from irtool.engines.mnn.rewriting.work import Work, attributes, like

Borders = list[int]
"""Cells that are added before each axis of the image, then after."""


def pool(work: Work, node: NodeProto) -> list[NodeProto] | None:
    """State the steps of a pool, which are 1 by default, and its borders."""
    values = attributes(node)
    kernel = values["kernel_shape"]
    new: dict[str, Any] = {} if "strides" in values else {"strides": [1] * len(kernel)}
    borders = _same_lower(work, node, kernel)
    if borders is not None:
        new["pads"] = borders
    if not new:
        return None
    work.changed += 1
    return [like(node, list(node.input), without=["auto_pad"] if borders is not None else [], **new)]


def conv(work: Work, node: NodeProto) -> list[NodeProto] | None:
    """State the borders of a convolution; give one of signals that is a result the rank that it has."""
    weight = work.shape(node.input[1])
    borders = None if weight is None else _same_lower(work, node, weight[2:])
    if borders is not None:
        work.changed += 1
        node = like(node, list(node.input), without=["auto_pad"], pads=borders)
    return _of_signals(work, node) or ([node] if borders is not None else None)


def conv_transpose(work: Work, node: NodeProto) -> list[NodeProto] | None:
    """State the borders of a transposed convolution whose result's sizes are given; give one of signals that is a result the rank that it has."""
    values, given, weight = attributes(node), work.shape(node.input[0]) or work.sizes.get(node.input[0]), work.shape(node.input[1])
    wanted = values.get("output_shape")
    if wanted and given is not None and weight is not None and None not in given[2:]:
        space = len(weight) - 2
        wanted, kernel = wanted[-space:], weight[2:]
        steps, gaps, more = (
            values.get(name, [default] * space) for name, default in (("strides", 1), ("dilations", 1), ("output_padding", 0))
        )
        total = [
            step * ((length or 0) - 1) + extra + (width - 1) * gap + 1 - size
            for step, length, extra, width, gap, size in zip(steps, given[2:], more, kernel, gaps, wanted, strict=True)
        ]
        if min(total) >= 0:
            lower = [entry // 2 if values.get("auto_pad") == "SAME_UPPER" else entry - entry // 2 for entry in total]
            work.changed += 1
            pads = [*lower, *(entry - low for entry, low in zip(total, lower, strict=True))]
            node = like(node, list(node.input), without=["auto_pad", "output_shape"], pads=pads)
            return _of_signals(work, node) or [node]
    return _of_signals(work, node)


def _same_lower(work: Work, node: NodeProto, kernel: list[int] | tuple[int, ...]) -> Borders | None:
    """Borders of a window that keeps the image's size and has the odd entry in front; None where it has not, or sizes are free."""
    values, sizes = attributes(node), work.sizes.get(node.input[0])
    if values.get("auto_pad") != "SAME_LOWER" or sizes is None:
        return None
    space = len(kernel)
    steps, gaps = (values.get(name, [1] * space) for name in ("strides", "dilations"))
    total: list[int] = []
    for length, width, step, gap in zip(sizes[2:], kernel, steps, gaps, strict=True):
        reach = (width - 1) * gap + 1
        if length is None and step != 1:
            return None
        total.append(reach - 1 if length is None or step == 1 else max((-(-length // step) - 1) * step + reach - length, 0))
    return [*(entry - entry // 2 for entry in total), *(entry // 2 for entry in total)]


def _of_signals(work: Work, node: NodeProto) -> list[NodeProto] | None:
    """MNN computes signals as images of one column, and leaves the column on where the result is one of the model's."""
    weight = work.shape(node.input[1])
    if weight is None or len(weight) != 3:
        return None
    results = {value.name for value in work.model.graph.output}
    readers = [other for other in work.model.graph.node if node.output[0] in other.input]
    behind = node.output[0] in results or any(other.op_type in ("Relu", "Clip") and other.output[0] in results for other in readers)
    if not behind:
        return None
    name = work.inner(node, "column")
    view = helper.make_node("Reshape", [name, work.constant(node, "sizes", [0, 0, -1])], list(node.output), f"{node.name}.view")
    return [like(node, list(node.input), outputs=[name]), view]
