"""Channels keep their places where an axis numbers both, and an axis that the batch is in is never sliced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import irtool

PIXELS: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda y: y,
    "crop": lambda y: y[:, :, 1:-1, 1:-1],
    "roll": lambda y: torch.roll(y, (1, 1), (2, 3)),
    "narrow": lambda y: y.narrow(3, 1, 14).narrow(2, 1, 14),
    "turn": lambda y: torch.rot90(y, 1, (2, 3)),
    "step": lambda y: y[:, :, ::3][:, :, :4],
    "index": lambda y: y[..., torch.arange(1, 15)][:, :, 1:15],
    "swap": lambda y: torch.cat([y[..., 7:], y[..., :7]], 3),
    "sum": lambda y: y.cumsum(3),
    "norm": lambda y: F.normalize(y, dim=3),
    "mean": lambda y: y - y.mean(3, keepdim=True),
}


class Shuffled(nn.Module):
    """Pixels made of channels, moved, and made channels again."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.pixel_unshuffle(self.function(F.pixel_shuffle(self.a(x), 2)), 2))


class Enhanced(nn.Module):
    """Spatial group-wise enhance (Li et al. 2019): a sum over each group's channels, which therefore go together."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        z = y.reshape(x.shape[0] * 4, 4, *y.shape[2:])
        return self.b((z * torch.sigmoid((z * z.mean((2, 3), keepdim=True)).sum(1, keepdim=True))).view(y.shape))


@pytest.mark.parametrize("batch", [1, 2])
def test_a_size_that_is_computed_from_the_batch_stays_so(batch: int) -> None:
    model = Enhanced().eval()
    graph = irtool.trace(model, torch.randn(batch, 3, 4, 4))
    pruned = irtool.prune(graph, irtool.plan(graph, "l1", 0.5, "local"), "drop").module
    x = torch.randn(3, 3, 4, 4)
    assert pruned(x).shape == model(x).shape


class InTime(nn.Module):
    """Eight moments of each channel by views, shifted, and channels again."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Conv1d(3, 16, 1), nn.Conv1d(16, 4, 1), function

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        b, c, n = y.shape
        y = self.function(y.view(b, c // 8, 8, n).permute(0, 1, 3, 2).reshape(b, c // 8, n * 8))
        n = y.shape[2] // 8
        return self.b(y.view(b, c // 8, n, 8).permute(0, 1, 3, 2).reshape(b, c, n))


def sliced_and_masked(model: Any, x: Tensor) -> tuple[int, Tensor, Tensor]:
    """Return the number of filters that went, the pruned model's output, and that of the model itself with these filters at zero."""
    graph = irtool.trace(model, x)
    plan = irtool.plan(graph, "l1", 0.5, "local")
    assert irtool.check_prune(graph, plan).ok
    pruned, gone = irtool.prune(graph, plan, "drop").module, list(plan.layers[0].removed)
    with torch.no_grad():
        model.a.weight[gone] = 0
        model.a.bias[gone] = 0
        return len(gone), pruned(x), model(x)


@pytest.mark.parametrize("name", PIXELS)
def test_pixels_that_are_moved_stay_whole(name: str) -> None:
    gone, sliced, masked = sliced_and_masked(Shuffled(PIXELS[name]).eval().double(), torch.randn(1, 3, 8, 8).double())
    assert gone == 8
    torch.testing.assert_close(sliced, masked, rtol=0, atol=1e-12)


@pytest.mark.parametrize("function", [lambda y: torch.roll(y, 1, 2), lambda y: y[:, :, 4:-4]], ids=["roll", "crop"])
def test_moments_that_are_moved_keep_their_order(function: Callable[[Tensor], Tensor]) -> None:
    gone, sliced, masked = sliced_and_masked(InTime(function).eval().double(), torch.randn(1, 3, 16).double())
    assert gone == 8
    torch.testing.assert_close(sliced, masked, rtol=0, atol=1e-12)


class Folded(nn.Module):
    """Groups of channels, or heads, folded into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1)
        self.q, self.k, self.v = (nn.Linear(4, 16) for _ in range(3))
        self.o = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        b, c, h, w = y.shape
        y = y.reshape(b * 2, 8, h, w)
        y = (y * torch.sigmoid(y.mean((2, 3), keepdim=True))).view(b, c, h, w)
        z = self.b(y).flatten(2).permute(2, 0, 1)
        q, k, v = (f(z).contiguous().view(h * w, b * 4, 4).transpose(0, 1) for f in (self.q, self.k, self.v))
        z = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
        return self.o(z.transpose(0, 1).contiguous().view(h * w, b, 16))


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_an_axis_with_the_batch_in_it_is_never_sliced(batch: int) -> None:
    model = Folded().eval()
    graph = irtool.trace(model, torch.randn(batch, 3, 4, 4))
    plan = irtool.plan(graph, "l1", 0.5, "local")
    assert irtool.check_prune(graph, plan).ok
    assert {layer.name: len(layer.removed) for layer in plan.layers} == {"a": 8, "b": 2, "q": 8, "k": 8, "v": 8, "o": 0}
    pruned = irtool.prune(graph, plan, "drop").module
    for other in (1, 3):
        x = torch.randn(other, 3, 4, 4)
        assert pruned(x).shape == model(x).shape
