"""Edits of a traced program that no other host knows: modules, methods, tuples, what is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import irtool
from irtool.errors import GraphError
from irtool.hosts.torch.tracing import trace as tracing
from irtool.ir.graph import Node

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """A layer, and a function of what it gives."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.function = nn.Conv2d(3, 4, 3, padding=1), function
        self.scale = nn.Parameter(torch.rand(4, 1, 1) + 1)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, self.conv(x))


def traced(function: Callable[[Any, Tensor], Any], **parts: nn.Module) -> irtool.FxGraph:
    """Such a net as a graph."""
    return irtool.trace(Net(function, **parts).eval(), X)


def node_of(graph: irtool.FxGraph, op: str) -> Node:
    """The first node of an operator."""
    return next(node for node in graph.nodes if node.op == op)


def test_what_is_inserted_can_be_trained() -> None:
    graph = traced(lambda net, y: y.relu())
    relu = node_of(graph, "Relu")
    scale = graph.add_param("a.scale", torch.ones(4, 1, 1))
    shift = graph.add_param("shift", torch.ones(4, 1, 1), trainable=False)
    new = graph.insert("Mul", [relu.output, scale], after=relu)
    last = graph.insert("Add", [new.output, shift], after=new)
    graph.replace_uses(relu.output, last.output, [use for use in relu.output.uses if use is not new])
    graph.commit()
    trained = dict(graph.module.named_parameters())
    assert scale.name in trained
    assert shift.name not in trained
    assert shift.name in dict(graph.module.named_buffers())
    graph.module(X).sum().backward()
    assert trained[scale.name].grad is not None


def test_a_parameter_that_nothing_read_leaves_no_trace() -> None:
    graph = traced(lambda net, y: y.relu())
    names = list(graph.module.state_dict())
    graph.add_param("idle", torch.ones(4))
    graph.commit()
    assert list(graph.module.state_dict()) == names


def test_a_layer_that_is_called_twice_keeps_its_attributes() -> None:
    graph = traced(lambda net, y: net.act(net.act(y) + 1), act=nn.LeakyReLU(0.1))
    with pytest.raises(GraphError, match="is called by act, act_1"):
        graph.set_attr(node_of(graph, "LeakyRelu"), "alpha", 0.5)


def test_a_bias_given_to_a_layer_is_that_of_all_its_calls() -> None:
    graph = traced(lambda net, y: net.mix(net.mix(y).relu()), mix=nn.Conv2d(4, 4, 1, bias=False))
    first, second = (node for node in graph.nodes if node.location == "mix")
    graph.give_bias(first, torch.ones(4), "unused")
    assert second.operands["bias"] is first.operands["bias"]
    assert first.operands["bias"].name == "mix.bias"
    graph.commit()
    assert graph.params["mix.bias"].uses == [node for node in graph.nodes if node.location == "mix"]


@pytest.mark.parametrize("tracer", ["symbolic", "export"])
def test_attributes_of_calls_are_written_where_the_tracer_has_them(tracer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "ATTEMPTS", ((tracer, tracer != "export"),))

    def middle(net: Any, y: Tensor) -> Tensor:
        return torch.softmax(nn.functional.leaky_relu(torch.cat([y, y], 1), 0.3), 1)

    graph = irtool.trace(Net(middle).eval(), X)
    graph.set_attr(node_of(graph, "LeakyRelu"), "alpha", 0.6)
    graph.set_attr(node_of(graph, "Softmax"), "axis", 3)
    graph.set_attr(node_of(graph, "Concat"), "axis", 2)
    graph.commit()
    y = Net(middle).eval().conv(X)
    expected = torch.softmax(nn.functional.leaky_relu(torch.cat([y, y], 2), 0.6), 3)
    assert torch.allclose(graph.run(X), expected, atol=1e-6)


def test_a_member_of_a_tuple_that_is_read_whole_is_refused() -> None:
    graph = traced(lambda net, y: y.split([1, 3], 1))
    split = node_of(graph, "Split")
    new = graph.insert("Neg", [split.outputs[1]], after=split)
    with pytest.raises(GraphError, match="by itself"):
        graph.replace_uses(split.outputs[1], new.output)


def test_sizes_are_read_of_what_stands_for_a_value() -> None:
    graph = traced(lambda net, y: y.relu().reshape(y.relu().shape[0], -1))
    relu = [node for node in graph.nodes if node.op == "Relu"][-1]
    assert graph.only_reader(relu.output) is None
    graph.bypass(relu)
    graph.commit()
    assert sum(node.op == "Relu" for node in graph.nodes) == 1
    assert graph.run(X).shape == (2, 256)


def test_a_parameter_of_the_program_changes_for_one_reader() -> None:
    graph = traced(lambda net, y: (y * net.scale).relu() + net.scale)
    mul, scale = node_of(graph, "Mul"), graph.params["scale"]
    graph.replace_uses(scale, graph.add_param("other", torch.full((4, 1, 1), 3.0)), [mul])
    graph.commit()
    net = Net(lambda net, y: (y * 3).relu() + net.scale).eval()
    assert torch.allclose(graph.run(X), net(X))


def test_modules_that_share_a_parameter_change_it_together() -> None:
    tied = nn.Conv2d(4, 4, 1, bias=False)
    other = nn.Conv2d(4, 4, 1, bias=False)
    other.weight = tied.weight
    graph = traced(lambda net, y: net.b(net.a(y).relu()), a=tied, b=other)
    weight = graph.params["a.weight"]
    wide = graph.add_param("wide", 2 * tied.weight.detach())
    with pytest.raises(GraphError, match="change it together"):
        graph.replace_uses(weight, wide, weight.uses[:1])
    graph.replace_uses(weight, wide)
    graph.commit()
    assert graph.module.a.weight is graph.module.b.weight
    assert [value.name for value in graph.params.values() if value.sizes == (4, 4, 1, 1)] == ["a.weight"]


def test_what_works_in_place_is_not_dropped_with_what_edits_left_unread() -> None:
    def writes(net: Any, y: Tensor) -> Tensor:
        z = y.clone()
        z.add_(1)
        return net.act(y)

    module = fx.symbolic_trace(Net(writes, act=nn.ReLU()).eval())
    graph = irtool.FxGraph(module, (X,))
    before = [node.host.name for node in graph.nodes]
    graph.bypass(node_of(graph, "Relu"))
    graph.commit()
    assert [node.host.name for node in graph.nodes] == [name for name in before if name != "act"]


def test_a_shared_bias_is_named_after_who_keeps_it() -> None:
    one, two = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
    two.bias = one.bias
    graph = traced(lambda net, y: net.b(net.a(y).relu()), a=one, b=two)
    first, second = (node for node in graph.nodes if node.location in ("a", "b"))
    graph.give_bias(first, torch.ones(4), "unused")
    assert (first.operands["bias"].name, second.operands["bias"].name) == ("a.bias", "b.bias")
    graph.set_param("b.bias", torch.full((4,), 2.0))
    graph.commit()
    assert torch.equal(graph.module.a.bias, torch.ones(4))
    assert torch.equal(graph.module.b.bias, torch.full((4,), 2.0))
