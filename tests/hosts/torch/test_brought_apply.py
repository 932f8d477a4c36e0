"""A class is sliced in place whichever tracer served: sizes that torch's layers keep as attributes are theirs, not forward's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import irtool
from irtool.errors import PlanError
from irtool.hosts.torch.tracing import trace as tracing

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Tokens(nn.Module):
    """Layer norm and a hidden width on the last axis."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x.permute(0, 2, 3, 1))
        return (y + self.down(self.up(y).relu())).permute(0, 3, 1, 2)


MIDDLES: dict[str, Any] = {
    "depthwise": lambda: nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.GroupNorm(4, 16), nn.ReLU()),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(16, 16, 3, groups=16), nn.BatchNorm2d(16), nn.PReLU(16)),
    "instance norm": lambda: nn.Sequential(nn.InstanceNorm2d(16, affine=True), nn.ReLU()),
    "group norm of single channels": lambda: nn.GroupNorm(16, 16),
    "tokens": Tokens,
}


@pytest.mark.parametrize("tracer", ["symbolic", "export"])
@pytest.mark.parametrize("name", MIDDLES)
def test_sizes_that_layers_keep_are_set(name: str, tracer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "ATTEMPTS", ((tracer, tracer != "export"),))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), MIDDLES[name](), nn.Conv2d(16, 4, 1)).eval()
    graph = irtool.trace(model, X)
    plan = irtool.plan(graph, "l1", 0.5, "local")
    assert graph.tracer == tracer
    assert plan.removed >= 7
    expected = irtool.prune(graph, plan).module(X)
    irtool.apply(plan, model, X)
    torch.testing.assert_close(model(X), expected, rtol=1e-5, atol=1e-6)
    assert model[0].out_channels == model[0].weight.shape[0] < 16
    assert model[2].in_channels == model[2].weight.shape[1]


@pytest.mark.parametrize("tracer", ["symbolic", "export"])
def test_a_size_that_forward_says_is_still_refused(tracer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.o = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1)
            self.w = nn.Parameter(torch.randn(16, 1, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.o(nn.functional.conv2d(self.a(x), self.w, groups=16))

    monkeypatch.setattr(tracing, "ATTEMPTS", ((tracer, tracer != "export"),))
    model = Written().eval()
    before = model(X)
    plan = irtool.plan(irtool.trace(model, X), "l1", 0.5, "local")
    with pytest.raises(PlanError, match="forward has a size written into it"):
        irtool.apply(plan, model, X)
    assert torch.equal(model(X), before)


def _halves(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return a * b.sigmoid()


def _split_by_count(x: Tensor) -> Tensor:
    a, b = x.split(x.shape[1] // 2, 1)
    return a + b


def _viewed_by_count(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).sum(1)


def _eights(x: Tensor) -> Tensor:
    a, b = x.split(8, 1)
    return a + b


class Halved(nn.Module):
    """Sizes that forward computes from the widths, and that a tracer with values writes down as numbers."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.a, self.o, self.function = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(8, 4, 1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.function(self.a(x)))


@pytest.mark.parametrize("tracer", ["concrete", "export"])
@pytest.mark.parametrize("function", [_halves, _split_by_count, _viewed_by_count])
def test_a_size_that_forward_computes_is_none_that_it_says(function: Any, tracer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "ATTEMPTS", ((tracer, tracer != "export"),))
    torch.manual_seed(0)
    model = Halved(function).eval()
    graph = irtool.trace(model, X)
    plan = irtool.plan(graph, "l1", 0.5, "local")
    assert plan.removed >= 7
    expected = irtool.prune(graph, plan).module(X)
    irtool.apply(plan, model, X)
    torch.testing.assert_close(model(X), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tracer", ["symbolic", "concrete", "export"])
@pytest.mark.parametrize("function", [_eights, lambda x: x.view(-1, 2, 8, 8, 8).sum(1)])
def test_a_split_or_view_of_a_written_size_is_refused(function: Any, tracer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "ATTEMPTS", ((tracer, tracer != "export"),))
    model = Halved(function).eval()
    before = model(X)
    plan = irtool.plan(irtool.trace(model, X), "l1", 0.5, "local")
    with pytest.raises(PlanError, match="forward has a size written into it"):
        irtool.apply(plan, model, X)
    assert torch.equal(model(X), before)
