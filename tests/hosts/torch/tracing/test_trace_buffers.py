"""Writes of a model into its buffers: the graph writes the same, in the same order, or none of it and says so."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from odd_nets import Net, X, make
from torch import Tensor

import irtool


def _mean(x: Tensor) -> Tensor:
    return x.mean((0, 2, 3), keepdim=True).detach()


def _chain(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    net.ema.mul_(0.9).add_(_mean(y), alpha=0.1)
    return net.head(y - net.ema)


def _steps(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    net.count.add_(1)
    net.ema.mul_(1 - 1 / (net.count + 1)).add_(_mean(y) / net.count)
    net.ema.clamp_(-1, 1)
    return net.head(y - net.ema) * net.count


def _between(net: Net, x: Tensor) -> Tensor:
    y = net.a(x) - net.ema
    net.ema.mul_(0.5)
    net.ema.add_(_mean(y))
    return net.head(y + net.ema.view(1, -1, 1, 1))


def _copied(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    net.ema.copy_(net.ema * 0.9 + 0.1 * _mean(y))
    return net.head(y - net.ema)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("function", [_chain, _steps, _between, _copied])
def test_the_graph_writes_what_the_model_writes(function: Callable[[Any, Tensor], Any], training: bool) -> None:
    model = make(function, ema=torch.full((1, 16, 1, 1), 0.5), count=torch.zeros(())).train(training)
    graph = irtool.trace(model, X)
    assert graph.notes == ()
    assert float(model.ema.mean()) == 0.5
    plan = irtool.plan(graph, "l1", 0.5, "local")
    assert irtool.check_prune(graph, plan).ok
    original = copy.deepcopy(model)
    pruned = irtool.FoldConstants()(irtool.prune(graph, irtool.plan(graph, "l1", 0.0))).graph.module
    module = irtool.FoldConstants()(graph).graph.clone().module
    with torch.no_grad():
        for step in range(4):
            x = X * (step + 1)
            expected = original(x)
            for traced in (module, pruned):
                torch.testing.assert_close(traced(x), expected, rtol=0, atol=1e-6)
                torch.testing.assert_close(traced.ema, original.ema, rtol=0, atol=1e-6)


def _decided(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    net.ema.mul_(0.5)
    if float(net.ema.sum()) > 0:
        net.ema.add_(_mean(y))
    return net.head(y - net.ema)


def _exchanged(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    net.ema += 1
    net.ema.mul_(_mean(y))
    return net.head(y - net.ema)


@pytest.mark.parametrize("function", [_decided, _exchanged])
def test_writes_that_cannot_be_recorded_are_left_out_and_told(function: Callable[[Any, Tensor], Any]) -> None:
    model = make(function, ema=torch.full((1, 16, 1, 1), 0.5))
    graph = irtool.trace(model, X)
    assert graph.notes == ("ema set by forward: the graph does not",)
    module = graph.module
    with torch.no_grad():
        torch.testing.assert_close(module(X), model.head(model.a(X) - 0.5))
        torch.testing.assert_close(module(X), module(X))
    assert torch.equal(module.ema, torch.full((1, 16, 1, 1), 0.5))
