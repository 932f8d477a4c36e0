"""A traced graph computes what the model computes, and tracing leaves the model alone; what it cannot hold is said."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exported import by_export
from odd_nets import Net, X, make
from torch import Tensor, nn

import irtool
from irtool.errors import TraceError
from irtool.hosts.torch.tracing import trace as tracing


def _half(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    half = y[:, :8]
    half += net.b(y)[:, :8]
    return net.head(y)


def _other_name(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    skip = y
    y *= 0.5
    return net.head(net.b(y) + skip)


def _in_a_list(net: Net, x: Tensor) -> Tensor:
    features = [net.a(x)]
    features.append(net.b(features[0]))
    out = features[-1]
    out -= features[0]
    return net.head(sum(features))


def _power(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    view = y.flatten(2)
    view **= 2
    return net.head(y)


def _sizes(net: Net, x: Tensor) -> Tensor:
    side = x.shape[-1]
    whole = side
    side //= 2
    return net.head(F.interpolate(net.a(x), size=(side, side)) * whole)


def _activated(net: Net, x: Tensor) -> Tensor:
    y = F.relu(net.a(x), inplace=True)
    y += net.b(y)
    return net.head(y)


@pytest.mark.parametrize("function", [_half, _other_name, _in_a_list, _power, _sizes, _activated])
def test_augmented_assignments_write_where_the_model_writes(function: Callable[[Any, Tensor], Any]) -> None:
    model = make(function)
    graph = irtool.trace(model, X)
    with torch.no_grad():
        torch.testing.assert_close(graph.module(X), model(X), rtol=0, atol=0)
    assert irtool.check_prune(graph, irtool.plan(graph, "l1", 0.5, "local")).ok


def test_a_residual_addition_stays_a_plain_one() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            out = self.bn(self.conv(x))
            out += x
            return F.relu(out)

    graph = irtool.trace(Block().eval(), X)
    assert [node.callee for node in graph.nodes if node.op == "Add"] == ["_operator.add"]


def test_hooks_on_the_root_are_refused_with_a_way_out() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)).eval()
    model.register_forward_hook(lambda module, inputs, output: output.softmax(1))
    with pytest.raises(TraceError, match="hooks"):
        irtool.trace(model, X)
    graph = irtool.trace(nn.Sequential(model), X)
    with torch.no_grad():
        torch.testing.assert_close(graph.module(X), model(X))


@pytest.mark.parametrize(
    ("model", "remedy"),
    [
        (nn.Sequential(torch.jit.script(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())), nn.Conv2d(8, 2, 1)), "original nn.Module"),
        (torch.compile(nn.Sequential(nn.Conv2d(3, 8, 3)), backend="eager"), "_orig_mod"),
    ],
    ids=["scripted", "compiled"],
)
def test_modules_without_python_code_are_refused(model: nn.Module, remedy: str) -> None:
    with pytest.raises(TraceError, match=remedy):
        irtool.trace(model.eval(), X)


def test_an_exported_graph_keeps_the_modes_and_the_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "ATTEMPTS", (("export", False),))

    def function(net: Net, x: Tensor) -> Tensor:
        y = net.bn(net.a(x)).clone()
        y[:, :8] = y[:, :8].relu()
        return net.head(y)

    model = make(function, bn=nn.BatchNorm2d(16))
    with by_export():
        graph = irtool.trace(model, X)
    assert graph.tracer == "export"
    before = model.bn.running_mean.clone()
    assert not any(module.training for module in graph.module.modules())
    graph.module(X)
    assert torch.equal(model.bn.running_mean, before)
    model.train()
    model.bn.eval()
    traced = irtool.trace(model, X).module
    assert traced.training
    assert not traced.bn.training


def test_a_flag_that_the_code_states_stays_and_one_from_the_mode_follows() -> None:
    stated = make(lambda net, x: F.dropout(net.a(x), 0.5, training=True))
    assert int((irtool.trace(stated, X).run(X) == 0).sum()) > 1000
    meant = make(lambda net, x: net.head(F.dropout(net.a(x), 0.5, net.training)))
    graph = irtool.trace(meant, X)
    assert graph.notes == ()
    with torch.no_grad():
        assert torch.equal(graph.module(X), meant(X))
        assert not torch.equal(graph.module.train()(X), graph.module(X))


def test_a_functional_batch_norm_behind_a_linear_layer_runs() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 8)
            self.register_buffer("mean", torch.zeros(8))
            self.register_buffer("var", torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(self.linear(x), self.mean, self.var, training=self.training)

    model, x = Flat().eval(), torch.randn(4, 6)
    graph = irtool.trace(model, x)
    torch.testing.assert_close(graph.run(x), model(x).detach())
    assert irtool.check_prune(graph, irtool.plan(graph, "l1", 0.5)).ok


def test_what_forward_leaves_behind_is_taken_back_and_said() -> None:
    def function(net: Net, x: Tensor) -> Tensor:
        net.steps += 1
        net.last = net.a(x)
        net.log.append(net.last)
        return net.head(net.last * net.scale.view(1, -1, 1, 1))

    model = make(function, steps=torch.zeros(()), scale=torch.rand(16), log=[])
    names = set(vars(model))
    graph = irtool.trace(model, X)
    assert set(vars(model)) == names
    assert model.log == []
    assert float(model.steps) == 0
    copy.deepcopy(model)
    assert len(graph.notes) == 1
    assert all(word in graph.notes[0] for word in ("steps", "last", "log", "set by forward"))


def _asks(net: Net, x: Tensor) -> Tensor:
    return net.head(net.a(x) * 2 if net.training else net.a(x))


def _ungraded(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = net.a(x)
    return net.head(y)


def _cast(net: Net, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return net.head(net.a(x))


@pytest.mark.parametrize(("function", "said"), [(_asks, "self.training"), (_ungraded, "no_grad"), (_cast, "autocast")])
def test_what_a_graph_cannot_hold_is_said(function: Callable[[Any, Tensor], Any], said: str) -> None:
    notes = irtool.trace(make(function), X).notes
    assert len(notes) == 1
    assert said in notes[0]


def test_a_graph_that_is_not_its_model_fails_the_check() -> None:
    graph = irtool.trace(make(_cast), X)
    found = irtool.check_prune(graph, irtool.plan(graph, "l1", 0.5))
    assert found.relative <= 1e-9
    assert found.traced > 1e-4
    assert not found.ok


@pytest.mark.parametrize("sized", [False, True])
def test_a_trace_that_decided_by_sizes_is_told(sized: bool) -> None:
    def function(net: Net, x: Tensor) -> Tensor:
        y = net.a(x)
        if x.shape[-1] > 18 and sized:
            y = y * 2
        if x.shape[1] == 3:
            y = y + 1
        return net.head(y)

    graph = irtool.trace(make(function), X)
    assert graph.tracer == "concrete"
    assert irtool.check_prune(graph, irtool.plan(graph, "l1", 0.5)).fixed == sized


def test_an_exported_graph_has_no_false_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "ATTEMPTS", (("export", False),))

    def function(net: Net, x: Tensor) -> Tensor:
        y = net.a(x).clone()
        y[:, :8] = y[:, :8].relu()
        return net.head(y)

    with by_export():
        graph = irtool.trace(make(function), X)
    assert (graph.tracer, graph.notes) == ("export", ())
