"""Kind (iv): a graph is compared with its model before `trace` returns it, in the mode in which it was traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import irtool
from irtool.errors import TraceError

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Parts(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.k, self.k2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.n, self.n2, self.b = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.Conv2d(8, 5, 1)
        nn.init.normal_(self.n2.weight)
        self.register_buffer("mask", (torch.arange(8) % 3 > 0).float().view(8, 1, 1, 1))
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def _swapped(net: Any, x: Tensor) -> Tensor:
    return net.b(torch.func.functional_call(net.k, dict(net.k2.named_parameters()), (net.a(x),)).relu())


def _swapped_norm(net: Any, x: Tensor) -> Tensor:
    return net.b(torch.func.functional_call(net.n, dict(net.n2.named_parameters()), (net.a(x),)))


def _swapped_masked(net: Any, x: Tensor) -> Tensor:
    return net.b(torch.func.functional_call(net.k, {"weight": net.k.weight * net.mask, "bias": net.k.bias}, (net.a(x),)))


def _swapped_by_hand(net: Any, x: Tensor) -> Tensor:
    kept, net.k.weight = net.k.weight, net.k2.weight
    y = net.k(net.a(x))
    net.k.weight = kept
    return net.b(y)


def _swapped_stride(net: Any, x: Tensor) -> Tensor:
    net.k.stride = (2, 2)
    y = net.k(net.a(x))
    net.k.stride = (1, 1)
    return net.b(y)


def _shared(net: Any, x: Tensor) -> Tensor:
    """A block of layers with the weights of another."""
    block = nn.Sequential(net.k, nn.ReLU())
    weights = {f"0.{name}": tensor for name, tensor in net.k2.named_parameters()}
    return net.b(torch.func.functional_call(block, weights, (net.a(x),)))


NETS = [_swapped, _swapped_norm, _swapped_masked, _swapped_by_hand, _swapped_stride, _shared]


@pytest.mark.parametrize("function", NETS)
def test_weights_that_are_swapped_in(function: Callable[[Any, Tensor], Any]) -> None:
    torch.manual_seed(0)
    model = Parts(function).eval()
    graph = irtool.trace(model, X)
    with torch.no_grad():
        torch.testing.assert_close(graph.run(X), model(X))
    assert irtool.check_prune(graph, irtool.plan(graph, "l1", 0.5)).ok


def test_a_graph_that_computes_something_else_is_not_returned() -> None:
    calls: list[int] = []

    class Alters(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) * (2 if type(x) is Tensor else 3)

    with pytest.raises(TraceError, match="computes something else than the model"):
        irtool.trace(Alters().eval(), X)
    assert not calls


def _training_alone(net: Any, x: Tensor) -> Any:
    y = net.b(F.relu(net.a(x)))
    return y if net.training else (y.flatten(2).sigmoid(), y)


def _training_scale(net: Any, x: Tensor) -> Any:
    return net.b(net.n(net.a(x))) * (1 if net.training else 3)


def _training_dict(net: Any, x: Tensor) -> Any:
    y = net.k(net.a(x))
    return {"out": net.b(y), "aux": y.mean()} if net.training else net.b(y)


@pytest.mark.parametrize("function", [_training_alone, _training_scale, _training_dict])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("later", [True, False])
def test_compared_in_the_mode_that_was_traced(function: Callable[[Any, Tensor], Any], training: bool, later: bool) -> None:
    torch.manual_seed(0)
    model = Parts(function).train(training)
    graph = irtool.trace(model, X)
    model.train(later)
    found = irtool.check_prune(graph, irtool.plan(graph, "l1", 0.5))
    assert found.ok
    assert found.traced <= 1e-6
    assert "self.training" in graph.notes[0]


def test_numbers_that_no_two_runs_agree_on_are_not_compared() -> None:
    class Draws(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return y + torch.randn_like(y) * 0.1

    assert irtool.trace(Draws().eval(), X).tracer == "symbolic"
