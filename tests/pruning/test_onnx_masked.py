"""The masked reference of an ONNX graph holds zeros where a channel was removed, whatever the operator makes of a zero."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from onnx_nets import Net

import irtool
from irtool.hosts.onnx.files.load import from_model


def _standardised(n: Net, x: str) -> str:
    centred = n.op("Sub", x, n.op("ReduceMean", x, axes=[2, 3]))
    return n.op("Div", centred, n.op("Sqrt", n.op("ReduceMean", n.op("Mul", centred, centred), axes=[2, 3])))


INFINITE: dict[str, Callable[[Net, str], str]] = {
    "division": _standardised,
    "reciprocal": lambda n, x: n.op("Reciprocal", n.op("Softplus", x)),
    "logarithm": lambda n, x: n.op("Log", n.op("Sigmoid", x)),
}


@pytest.mark.parametrize("name", INFINITE)
def test_a_masked_zero_may_become_infinite(name: str) -> None:
    n = Net()
    graph = from_model(n.model(n.head(n.conv(INFINITE[name](n, n.conv("x", 3, 16)), 16, 8), 8)))
    plan = irtool.plan(graph, "l1", 0.5, "local")
    assert [len(layer.removed) for layer in plan.layers] == [8, 4, 0]
    check = irtool.check_prune(graph, plan)
    assert check.ok
    assert check.relative <= 1e-5
