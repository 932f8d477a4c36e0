"""Programs that count what an image shows: nothing is decided by the example's count, in silence least of all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import irtool

X = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def _compares(x: Tensor) -> Tensor:
    bright, dark = (x > 0.5).nonzero(), (x < 0.25).nonzero()
    return bright if bright.shape[0] > dark.shape[0] else dark


def _loops(x: Tensor) -> Tensor:
    total = x.sum()
    for value in x[x > 0.5]:
        total = total + value
    return total


def _ranges(x: Tensor) -> Tensor:
    found = torch.masked_select(x, x > 0.5)
    return torch.stack([found[number] * number for number in range(found.numel())])


class Net(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.function = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.b(torch.relu(self.a(x))))


@pytest.mark.parametrize("function", [_compares, _loops, _ranges])
def test_a_branch_or_a_loop_by_a_count_is_refused_in_one_line(function: Callable[[Tensor], Any], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(irtool.errors.TraceError, match=r"test_brought_counted\.py"):
        irtool.trace(Net(function).eval(), X)
    assert capfd.readouterr() == ("", "")


def _as_many(x: Tensor) -> Tensor:
    found = (x > 0.2).nonzero()
    return torch.zeros(found.shape[0], 4) + found[:, 1:2] * found.shape[1]


def _mean_of_some(x: Tensor) -> Tensor:
    return x * (2.0 + x[x > 0.2].sum())


@pytest.mark.parametrize("function", [_as_many, _mean_of_some])
def test_what_follows_a_count_without_deciding_by_it_is_traced(function: Callable[[Tensor], Any]) -> None:
    model = Net(function).eval()
    graph = irtool.trace(model, X)
    for image in (X, 3 * X.flip(2), torch.cat([X, 2 * X])):
        torch.testing.assert_close(graph.module(image), model(image))
    assert irtool.plan(graph, "l1", 0.5, "local").layers[0].kept == 4
