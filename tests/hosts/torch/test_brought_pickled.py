"""`torch.save` of a traced or pruned module as it is, which people do beside `irtool.save`."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from exported import by_export
from torch import Tensor, nn

import irtool


class Net(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.function = function

    def forward(self, x: Tensor, other: Tensor | None = None) -> Any:
        return self.function(self, self.a(x) if other is None else self.a(x) + other)


def masked(s: Any, y: Tensor) -> Any:
    return s.b(y.masked_fill(torch.ones(y.shape[-2], y.shape[-1], dtype=torch.bool).tril(), 0.0))


def best(s: Any, y: Tensor) -> Any:
    return s.b(y).flatten(2).topk(max(1, int(y.shape[-1] * 0.5)), -1)[0]


def stated(s: Any, y: Tensor) -> Any:
    state = torch.zeros(y.size(0), 4, y.size(2), y.size(3), dtype=y.dtype)
    for _ in range(y.shape[1] // 4):
        state = torch.tanh(s.b(y) + state)
    return {"state": state}


@pytest.mark.parametrize("function", [masked, best, stated], ids=lambda function: function.__name__)
@pytest.mark.parametrize("exported", [False, True])
def test_a_module_comes_back_as_it_was(function: Callable[[Any, Tensor], Any], exported: bool) -> None:
    with by_export() if exported else nullcontext():
        graph = irtool.trace(Net(function).eval(), (torch.randn(1, 3, 8, 8), None))
    pruned = irtool.prune(graph, irtool.plan(graph, "l1", 0.5))
    for module in (graph.module, pruned.module, copy.deepcopy(pruned.module)):
        module.names = ["a", "b"]
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        x = torch.randn(1, 3, 8, 8)
        torch.testing.assert_close(loaded(x, None), module(x, None), rtol=0, atol=0)
        assert isinstance(loaded, torch.fx.GraphModule)
        assert loaded.names == ["a", "b"]
        assert not loaded.training
