"""Operators that mix channels: pruned, and checked against the same operator on the channels that stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import irtool

MIXES: dict[str, Callable[[Tensor], Tensor]] = {
    "cumulative sum": lambda x: x.cumsum(1),
    "cumulative product": lambda x: (0.1 * x).exp().cumprod(1),
    "cumulative logarithm of a sum of exponentials": lambda x: x.logcumsumexp(1),
    "softmin": lambda x: nn.functional.softmin(x, 1),
    "unit length": lambda x: nn.functional.normalize(x, dim=1),
}


class Mixes(nn.Module):
    """An operator across channels between two convolutions."""

    def __init__(self, mix: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.mix = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1), mix

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.mix(self.a(x)))


@pytest.mark.parametrize("name", MIXES)
def test_it_is_pruned_and_has_a_reference(name: str) -> None:
    torch.manual_seed(0)
    graph = irtool.trace(Mixes(MIXES[name]).eval(), torch.randn(2, 3, 8, 8))
    plan = irtool.plan(graph, "l1", 0.5, round_to=1)
    assert plan.removed == 8
    check = irtool.check_prune(graph, plan)
    assert check.ok
    assert check.inexact
    assert check.relative <= 1e-9
