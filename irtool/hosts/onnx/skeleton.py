"""A graph of any host in the words of placement: which operators there are, what they read, and which constants."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from irtool.ir.graph import Graph, Node
from irtool.ops.onnx_names import ENDS, NOTHING, in_onnx


def skeleton(graph: Graph, lowers: bool) -> ModelProto:
    """Describe a graph, batch norms folded where they can be, as the ONNX model that `irtool quantize` would make of it.

    The description says enough for `place`, by the names of the graph's values; it cannot be run. What does nothing (a dropout, an
    identity) is left out, as exporters do.

    Args:
        graph: the graph.
        lowers: whether a batch norm that stayed becomes a depthwise convolution, as for engines that compute that in integers.
    """
    alias, constants, nodes = dict[str, str](), dict[str, TensorProto](), list[NodeProto]()
    for value in graph.params.values():
        if value.data is not None:
            constants[value.name] = numpy_helper.from_array(value.data.detach().cpu().numpy(), value.name)
    for node in graph.nodes:
        if node.op in NOTHING:
            alias[node.output.name] = alias.get(node.input.name, node.input.name)
        elif node.op not in ENDS:
            nodes.append(_described(node, alias, constants, lowers))
    inputs = [helper.make_tensor_value_info(value.name, TensorProto.FLOAT, list(value.sizes)) for value in graph.inputs]
    named = [alias.get(value.name, value.name) for value in graph.outputs]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in named]
    inside = [
        helper.make_tensor_value_info(value.name, TensorProto.FLOAT, list(value.sizes))
        for node in graph.nodes
        for value in node.outputs
        if value.shape is not None and value.name not in named
    ]
    described = helper.make_graph(nodes, "skeleton", inputs, outputs, list(constants.values()), value_info=inside)
    return helper.make_model(described, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _described(node: Node, alias: Mapping[str, str], constants: dict[str, TensorProto], lowers: bool) -> NodeProto:
    read = [alias.get(value.name, value.name) for value in node.inputs]
    if node.op == "BatchNormalization" and lowers:
        return _depthwise(node, read, constants)
    op, attributes = in_onnx(node)
    if node.op == "Clip" and "min" in node.attrs:
        low = f"{node.output.name}.min"
        constants[low] = numpy_helper.from_array(np.array(node.attrs["min"], np.float32), low)
        read = [read[0], low]
    kept = {name: value for name, value in attributes.items() if _is_plain(value)}
    return helper.make_node(op, read, [value.name for value in node.outputs], **kept)


def _depthwise(node: Node, read: list[str], constants: dict[str, TensorProto]) -> NodeProto:
    """A batch norm as the convolution that it becomes: a weight for each channel, which integers hold exactly."""
    weight = f"{node.output.name}.lowered"
    channels = node.output.sizes[1]
    constants[weight] = numpy_helper.from_array(np.ones((channels, *[1] * (len(node.output.sizes) - 1)), np.float32), weight)
    return helper.make_node("Conv", [read[0], weight], [node.output.name], group=channels)


def _is_plain(value: object) -> bool:
    """Whether an attribute can be written into a description."""
    many = value if isinstance(value, tuple | list) else (value,)
    return bool(many) and all(isinstance(part, int | float | str) for part in many)
