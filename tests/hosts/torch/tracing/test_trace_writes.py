"""Writes, views and flags in a traced program: each net computes what the model computes, and leaves it as it was."""

from __future__ import annotations

import copy
from collections import OrderedDict, deque
from collections.abc import Callable
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from odd_nets import Net, X, make
from torch import Tensor, nn

import irtool


def _and(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    a = y > 0
    b = a & (y < 1)
    return net.head(y * a * 2 + net.b(y) * b)


def _or(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    a = y > 1
    b = a | (y < 0)
    return net.head(y * a * 2 + y * b)


def _out(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    buffer = torch.empty_like(y)
    torch.add(y, net.b(y), out=buffer)
    return net.head(y * buffer)


def _data(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    y.data += 1
    return net.head(y)


def _transposed(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    z = y.mT
    z *= 2
    return net.head(y)


def _real(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    z = y.real
    z -= 1
    return net.head(y)


def _product(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    z = y
    z @= y.mT
    return net.head(y + z)


def _other_type(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    y += net.offset
    return net.head(y)


def _unbound(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    for number, part in enumerate(y.unbind(1)):
        part *= number + 1
    return net.head(y)


@pytest.mark.parametrize("function", [_and, _or, _out, _data, _transposed, _real, _product, _other_type, _unbound])
def test_what_is_written_and_what_is_not(function: Callable[[Any, Tensor], Any]) -> None:
    model = make(function, offset=torch.rand(16, 1, 1, dtype=torch.float64))
    graph = irtool.trace(model, X)
    with torch.no_grad():
        torch.testing.assert_close(graph.module(X), model(X), rtol=0, atol=0)
        plan = irtool.plan(graph, "l1", 0.5, "local")
        irtool.prune(graph, plan).module(X)
    assert irtool.check_prune(graph, plan).traced == 0


def _compared(net: Net, x: Tensor) -> Tensor:
    return net.head(net.a(x) * (2 if net.training == True else 1))  # noqa: E712


def _looked_up(net: Net, x: Tensor) -> Tensor:
    return net.head(net.a(x) * {True: 2, False: 1}[net.training])


def _indexed(net: Net, x: Tensor) -> Tensor:
    return net.head(net.a(x) * [1, 2][int(net.training)])


def _computed(net: Net, x: Tensor) -> Tensor:
    return net.head(net.a(x) * (2 - net.training))


def _multiplied(net: Net, x: Tensor) -> Tensor:
    return net.head(net.a(x) + net.b(net.a(x)) * net.training)


def _told(net: Net, x: Tensor) -> Tensor:
    return net.head(net.a(x) * (2 if str(net.training) == "True" else 1))


def _other_mode(net: Net, x: Tensor) -> Tensor:
    return net.head(F.batch_norm(net.a(x), torch.zeros(16), torch.ones(16), training=not net.training))


def _rate(net: Net, x: Tensor) -> Tensor:
    return net.head(F.dropout(net.a(x), 0.5 if net.training else 0.0))


@pytest.mark.parametrize("function", [_compared, _looked_up, _indexed, _computed, _multiplied, _told, _other_mode, _rate])
def test_every_use_of_the_mode_is_told(function: Callable[[Any, Tensor], Any]) -> None:
    model = make(function)
    graph = irtool.trace(model, X)
    assert len(graph.notes) == 1
    assert "self.training" in graph.notes[0]
    with torch.no_grad():
        torch.testing.assert_close(graph.module(X), model(X), rtol=0, atol=0)


@pytest.mark.parametrize("training", [False, True])
def test_a_module_that_asks_for_the_flag_itself(training: bool) -> None:
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.head(x if self.training is False else x * 2)

    model = Asking().train(training)
    graph = irtool.trace(nn.Sequential(model).train(training), X)
    assert graph.notes == ("0 decide by self.training: traced as in this mode, what they do in the other is not in the graph",)
    with torch.no_grad():
        torch.testing.assert_close(graph.module(X), model(X), rtol=0, atol=0)


def test_a_mode_that_the_numbers_alone_can_tell() -> None:
    model = make(lambda net, x: net.head(net.a(x) * (1 if net.training is False else 2)))
    graph = irtool.trace(model, X)
    assert irtool.check_prune(graph, irtool.plan(graph, "l1", 0.5)).ok
    with torch.no_grad():
        torch.testing.assert_close(graph.module(X), model(X), rtol=0, atol=0)


def test_a_flag_that_must_be_a_bool() -> None:
    def function(net: Net, x: Tensor) -> Tensor:
        net.bn.train(net.training and net.frozen)
        return net.head(net.bn(net.a(x)))

    graph = irtool.trace(make(function, bn=nn.BatchNorm2d(16), frozen=False), X)
    assert graph.tracer == "symbolic"
    assert any("self.training" in note for note in graph.notes)


def test_modes_of_their_own_are_told() -> None:
    class Frozen(Net):
        def train(self, mode: bool = True) -> Frozen:
            super().train(mode)
            self.a.eval()
            return self

    assert "train() of their own" in irtool.trace(Frozen(lambda net, x: net.head(net.a(x))).eval(), X).notes[0]


def _swapped(net: Net, x: Tensor) -> Tensor:
    y = net.b(net.a(x))
    net.b, net.c = net.c, net.b
    return net.head(y)


def _late(net: Net, x: Tensor) -> Tensor:
    net.late = nn.Conv2d(16, 16, 1)
    return net.head(net.a(x))


def _statistics(net: Net, x: Tensor) -> Tensor:
    net.bn.running_mean.add_(1)
    net.bn.momentum = 0.5
    net.bn.eval()
    return net.head(net.bn(net.a(x)))


def _kept(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    net.last.append(y)
    net.size = (x.shape[-2], x.shape[-1])
    net.table["deep"]["list"].append(y)
    net.space.feature = y
    net.order["y"] = y
    net.a.feature = y
    net.register_buffer("made", torch.zeros(3), persistent=False)
    return net.head(y)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("function", [_swapped, _late, _statistics, _kept])
def test_the_model_is_left_as_it_was(function: Callable[[Any, Tensor], Any], training: bool) -> None:
    parts = {"c": nn.Conv2d(16, 16, 1), "bn": nn.BatchNorm2d(16), "last": deque(), "table": {"deep": {"list": []}}}
    model = make(function, **parts, size=(1, 1), space=SimpleNamespace(), order=OrderedDict(), held={"a", "b", "c"}).train(training)
    before = copy.deepcopy(model)
    graph = irtool.trace(model, X)
    assert any("set by forward" in note for note in graph.notes)
    assert "held" not in str(graph.notes)
    assert [(path, type(module), module.training) for path, module in model.named_modules()] == [
        (path, type(module), module.training) for path, module in before.named_modules()
    ]
    assert vars(model).keys() == vars(before).keys()
    assert vars(model.a).keys() == vars(before.a).keys()
    assert model.bn.momentum == before.bn.momentum
    assert model._non_persistent_buffers_set == before._non_persistent_buffers_set
    assert not model.last
    assert not model.table["deep"]["list"]
    assert not vars(model.space)
    assert not model.order
    for name, tensor in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_a_check_leaves_a_model_with_state_as_it_was_and_is_no_false_alarm() -> None:
    def function(net: Net, x: Tensor) -> Tensor:
        y = net.head(net.a(x) - net.count)
        net.count += 1
        return y

    model = make(function, count=torch.zeros(()))
    graph = irtool.trace(model, X)
    assert irtool.check_prune(graph, irtool.plan(graph, "l1", 0.5)).ok
    assert float(model.count) == 0


def test_a_layer_whose_forward_was_replaced_is_traced_into(tmp_path: Any) -> None:
    model = make(lambda net, x: net.head(net.a(x)))
    model.a.forward = MethodType(lambda conv, x: F.conv2d(x, conv.weight, conv.bias, padding=1) * 3, model.a)
    path = tmp_path / "net.safetensors"
    irtool.save(irtool.trace(model, X), path)
    with torch.no_grad():
        torch.testing.assert_close(irtool.load(path).run(X), model(X))


def test_an_input_of_none_is_a_constant() -> None:
    class Masked(Net):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            y = self.a(x)
            return self.head(y if mask is None else y * mask)

    model = Masked(lambda net, x: x).eval()
    graph = irtool.trace(model, (X, None))
    with torch.no_grad():
        torch.testing.assert_close(graph.module(X, None), model(X, None))
    assert irtool.check_prune(graph, irtool.plan(graph, "l1", 0.5)).ok


def test_a_copy_of_the_module_may_be_made_in_forward() -> None:
    def function(net: Net, x: Tensor) -> Tensor:
        copy.deepcopy(net.options)
        copy.deepcopy(net.training)
        return net.head(net.a(x))

    assert irtool.trace(make(function, options={"a": 1}), X).tracer == "symbolic"
