"""Kind (iv): a graph is compared with its model before `trace` returns it, in the mode in which it was traced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import irtool
from irtool.engines.agreement import row_error
from irtool.errors import TraceError
from irtool.hosts.torch.tracing.checking.compare import apart, apart_from, observed

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


class Best(nn.Module):
    """Candidates, best first; three nearly equal numbers are added from one side or the other."""

    def __init__(self, first: bool, offset: float = 0.0) -> None:
        super().__init__()
        self.first, self.offset = first, offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b, c, rest = x.unbind(2)
        score = (a + b) + c if self.first else a + (b + c)
        return rest.gather(1, score.topk(2000).indices)[..., None] + self.offset


def test_an_order_that_rounding_decides_is_no_difference() -> None:
    x = torch.rand(1, 2000, 4, generator=torch.Generator().manual_seed(0))
    x[..., :3] = 1 + x[..., :3] / 1000
    model = Best(True)
    for offset, equal in ((0.0, True), (0.1, False)):
        other = torch.fx.symbolic_trace(Best(False, offset))
        expected, found = observed(model, (x,)), observed(other, (x,))
        assert apart(expected, found) > 1e-2
        assert (apart_from(model, other, (x,), None, expected, found) < 1e-9) == equal
        assert (row_error(found.numpy(), expected.numpy()) < 1e-6) == equal
    assert row_error(expected.flip(1).numpy(), expected.numpy()) == 0
    assert row_error(expected[:, :1].expand_as(expected).numpy(), expected.numpy()) > 1e-2


def test_a_detector_whose_queries_change_places_is_exported(tmp_path: Path) -> None:
    class Queries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.score = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 1, 1)
            self.score.weight.data *= 1e-5  # nearly equal numbers

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.stem(x).relu()
            best = (1 + self.score(y)).flatten(1).topk(576).indices
            return y.flatten(2).transpose(1, 2).gather(1, best[..., None].expand(-1, -1, 16))

    torch.manual_seed(0)
    graph = irtool.trace(Queries().eval(), torch.randn(1, 3, 24, 24))
    made = irtool.export_onnx(irtool.prune(graph, irtool.plan(graph, "l1", 0.3)), tmp_path / "queries.onnx")
    assert made.dynamic_batch
    assert made.max_error < 1e-3


class HiddenByBias(nn.Module):
    """The size decides a ten-thousandth of the output, whose rest is a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            self.b.weight.mul_(2e-4)
            self.b.bias.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(y if x.shape[3] < 14 else -y).mean((2, 3))


def test_a_fault_that_a_bias_hides_is_told_from_rounding() -> None:
    graph = irtool.trace(HiddenByBias().eval(), torch.randn(1, 3, 12, 12))
    assert graph.fixed
    assert any("image is fixed" in note for note in graph.notes)
    assert not irtool.check_prune(graph, irtool.plan(graph, "random", 0.5)).wrong


def _exchanged(net: Any, x: Tensor) -> Tensor:
    kept = net.k.weight.data
    net.k.weight.data = kept * 0.5
    y = net.k(net.a(x))
    net.k.weight.data = kept
    return net.b(y)


def _exchanged_twice(net: Any, x: Tensor) -> Tensor:
    first, y = net.k.weight.data, net.a(x)
    for factor in (0.5, 2.0):
        net.k.weight.data = first * factor
        y = net.k(y)
    net.k.weight.data = first
    return net.b(y) + net.b(net.k(y))


@pytest.mark.parametrize("function", [_exchanged, _exchanged_twice])
def test_data_that_is_exchanged_and_put_back(function: Callable[[Any, Tensor], Any]) -> None:
    net = Parts(function).eval()
    weight, expected = net.k.weight.detach().clone(), net(X)
    graph = irtool.trace(net, X)
    for _ in range(3):  # what the graph writes into the weights that it shares is taken back by itself, as by the model
        assert torch.allclose(graph.module(X), expected, atol=1e-6)
        assert torch.equal(net.k.weight, weight)
    assert irtool.check_prune(graph, irtool.plan(graph, "l1", 0.5)).ok
