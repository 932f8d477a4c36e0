"""Operators of ONNX that say where something lies: a number that is another one once channels are gone."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_nets import Net

import irtool
from irtool.hosts.onnx.files.load import from_model


def extremum(net: Net, x: str) -> str:
    return net.op("Mul", x, net.op("Cast", net.op("ArgMax", x, axis=1, keepdims=1), to=1))


def pool(net: Net, x: str) -> str:
    pooled, places = net.op("MaxPool", x, outputs=2, kernel_shape=[2, 2], strides=[2, 2])
    return net.op("Mul", pooled, net.op("Cast", places, to=1))


@pytest.mark.parametrize("middle", [extremum, pool])
def test_places_pin_the_channels_that_they_count(middle: object) -> None:
    net = Net()
    x = middle(net, net.cbr("x", 3, 16))  # type: ignore[operator]
    graph = from_model(net.model(net.head(net.cbr(x, 16, 8), 8)))
    plan = irtool.plan(graph, "l1", 0.5, "local")
    assert irtool.check_prune(graph, plan).ok
    assert [layer.total - layer.kept for layer in plan.layers] == [0, 4, 0]
    assert "gives positions" in plan.layers[0].reason


def test_a_pool_whose_places_nobody_reads_loses_channels() -> None:
    net = Net()
    pooled, _ = net.op("MaxPool", net.cbr("x", 3, 16), outputs=2, kernel_shape=[2, 2], strides=[2, 2])
    graph = from_model(net.model(net.head(pooled, 16)))
    plan = irtool.plan(graph, "l1", 0.5, "local")
    assert irtool.check_prune(graph, plan).ok
    assert plan.removed == 8
    assert np.isclose(irtool.cost(irtool.prune(graph, plan, constants="drop")).params / irtool.cost(graph).params, 0.5, atol=0.1)
