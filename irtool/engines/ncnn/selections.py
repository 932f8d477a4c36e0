"""Selections of channels, which ncnn loses without a word, as the convolutions that they are."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

_RANK = 4
"""Of images: samples, channels, rows, columns."""


def widened(model: ModelProto) -> ModelProto:
    """Return a copy in which each selection from the channels of images by known indices is a 1x1 convolution with ones and zeros.

    Other gathers stay: whether ncnn computes them is seen when its file is compared.
    """
    found = onnx.shape_inference.infer_shapes(model)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in found.graph.initializer}
    shapes = {
        value.name: [axis.dim_value if axis.HasField("dim_value") else None for axis in value.type.tensor_type.shape.dim]
        for value in (*found.graph.input, *found.graph.value_info, *found.graph.output)
    }
    nodes = []
    for number, node in enumerate(found.graph.node):
        index = _selected(node, constants, shapes)
        if index is None:
            nodes.append(node)
            continue
        channels = shapes[node.input[0]][1]
        assert channels is not None
        weight = np.zeros((len(index), channels, 1, 1), np.float32)
        weight[np.arange(len(index)), index, 0, 0] = 1
        name = f"irtool_selection_{number}"
        found.graph.initializer.append(numpy_helper.from_array(weight, name))
        nodes.append(onnx.helper.make_node("Conv", [node.input[0], name], list(node.output), name=name))
    del found.graph.node[:]
    found.graph.node.extend(nodes)
    return found


def _selected(node: NodeProto, constants: dict[str, np.ndarray], shapes: dict[str, list[int | None]]) -> np.ndarray | None:
    """The channels that a node selects from images; None if it does something else."""
    if node.op_type != "Gather" or node.input[1] not in constants:
        return None
    shape, index = shapes.get(node.input[0], []), constants[node.input[1]]
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    if len(shape) != _RANK or shape[1] is None or axis not in (1, 1 - _RANK) or index.ndim != 1:
        return None
    return np.where(index < 0, index + shape[1], index)
