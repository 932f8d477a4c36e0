"""Edits of an ONNX graph that no other host knows: names, operator sets, bodies of control flow, sizes that the program computes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx_nets import Net, branching, flatten_by_shape, residual

import irtool
from irtool.errors import GraphError
from irtool.hosts.onnx.files.load import from_model
from irtool.ir.graph import Node


def node_of(graph: irtool.OnnxGraph, op: str) -> Node:
    """The first node of an operator."""
    return next(node for node in graph.nodes if node.op == op)


def noise(graph: irtool.OnnxGraph) -> torch.Tensor:
    """An input."""
    return torch.randn(graph.inputs[0].sizes, generator=torch.Generator().manual_seed(3))


def ran(graph: irtool.OnnxGraph, *names: str) -> list[np.ndarray]:
    """Outputs, or values by name, on noise; the file is checked."""
    onnx.checker.check_model(graph.proto, full_check=True)
    return [value.numpy() for value in graph.run(noise(graph), values=names)]


def test_what_stands_for_a_value_is_known_by_its_name() -> None:
    """Calibration tables and reports go by names of tensors."""
    graph = from_model(residual())
    relu = node_of(graph, "Relu")
    name = relu.output.name
    (before,) = ran(graph, name)
    new = graph.insert("Neg", [relu.output], after=relu, name=relu.name)
    graph.replace_uses(relu.output, new.output)
    assert new.output.name == name
    graph.commit()
    assert len({node.name for node in graph.nodes}) == len(graph.nodes)
    (after,) = ran(graph, name)
    assert np.array_equal(after, -before)


def test_a_name_is_free_when_its_node_is_gone() -> None:
    graph = from_model(residual())
    relu = node_of(graph, "Relu")
    name = relu.name
    new = graph.insert("Tanh", [relu.input], before=relu, name=name)
    graph.replace_uses(relu.output, new.output)
    graph.erase(relu)
    graph.commit()
    assert graph.node(name).op == "Tanh"


@pytest.mark.parametrize("opset", [9, 12, 21])
def test_attributes_stand_where_the_operator_set_has_them(opset: int) -> None:
    graph = from_model(residual(opset))
    relu = node_of(graph, "Relu")
    (before,) = ran(graph, relu.output.name)
    value = relu.output
    for op, attrs in (
        ("Clip", {"min": 0.0, "max": 0.5}),
        ("Pad", {"pads": [0, 1, 0, 0, 0, 0, 0, 0]}),
        ("Slice", {"starts": [1], "ends": [17], "axes": [1]}),
        ("Reshape", {"shape": [1, 16, 144]}),
        ("Reshape", {"shape": [1, 16, 12, 12]}),
    ):
        value = graph.insert(op, [value], attrs, after=value.producer).output
    clip = relu.output.uses[-1]
    graph.replace_uses(relu.output, value, [use for use in relu.output.uses if use is not clip])
    graph.commit()
    (after,) = ran(graph, value.name)
    assert np.allclose(after, before.clip(0, 0.5))
    graph.set_attr(node_of(graph, "Clip"), "max", 0.25)
    graph.set_attr(node_of(graph, "Slice"), "starts", [0])
    graph.set_attr(node_of(graph, "Slice"), "ends", [16])
    graph.commit()
    (after,) = ran(graph, value.name)
    assert np.allclose(after[:, 1:], before.clip(0, 0.25)[:, :-1])
    assert not after[:, 0].any()


def test_an_operator_that_came_later_is_refused() -> None:
    graph = from_model(residual(11))
    with pytest.raises(GraphError, match="no HardSwish in operator set 11"):
        graph.insert("HardSwish", [graph.inputs[0]], after=graph.nodes[0])


def test_bodies_of_control_flow_read_what_stands_for_a_value() -> None:
    graph = from_model(branching())
    captured = node_of(graph, "Opaque").inputs[-1]
    maker = captured.producer
    assert maker is not None
    (before,) = ran(graph, node_of(graph, "Opaque").output.name)
    new = graph.insert("Mul", [captured, graph.add_param("two", torch.full((1, 1, 1, 1), 2.0))], after=maker)
    graph.replace_uses(captured, new.output)
    graph.commit()
    (after,) = ran(graph, node_of(graph, "Opaque").output.name)
    assert np.allclose(after, 2 * before)
    assert graph.clone().text() == graph.text()


def test_a_size_that_the_program_asks_for_is_a_reader() -> None:
    graph = from_model(flatten_by_shape())
    relu = node_of(graph, "Relu")
    assert len(relu.output.uses) == 1
    assert graph.only_reader(relu.output) is None
    (before,) = ran(graph)
    text = graph.text()
    new = graph.insert("Neg", [relu.input], before=relu)
    graph.replace_uses(relu.output, new.output, relu.output.uses)
    with pytest.raises(GraphError, match="reads it"):
        graph.erase(relu)
    graph.replace_uses(relu.output, new.output)  # the Shape, too
    graph.erase(relu)
    graph.commit()
    assert ran(graph)[0].shape == before.shape
    assert graph.text() == text.replace("Relu", "Neg").replace("relu", "neg")


def test_an_output_that_is_an_input_stays_that() -> None:
    net = Net(17)
    graph = from_model(net.model(net.head(net.cbr("x", 3, 4), 4), "x", ranks=(2, 4)))
    new = graph.insert("Neg", [graph.inputs[0]], after=graph.nodes[0])
    with pytest.raises(GraphError, match="under its name"):
        graph.replace_uses(graph.inputs[0], new.output)
    graph.replace_uses(graph.inputs[0], new.output, [use for use in graph.inputs[0].uses if use.op == "Conv"])
    graph.commit()
    assert np.array_equal(ran(graph)[1], noise(graph).numpy())


def test_one_value_for_two_outputs_keeps_both_names() -> None:
    net = Net(17)
    x = net.cbr("x", 3, 4)
    graph = from_model(net.model(net.head(x, 4), net.head(net.op("Neg", x), 4), ranks=(2, 2)))
    names = [value.name for value in graph.outputs]
    graph.replace_uses(graph.outputs[1], graph.outputs[0])
    graph.commit()
    assert [value.name for value in graph.outputs] == names
    first, second = ran(graph)
    assert np.array_equal(first, second)
