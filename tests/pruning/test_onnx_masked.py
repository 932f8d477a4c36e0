"""The masked reference of an ONNX graph holds zeros where a channel was removed, whatever the operator makes of a zero."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
import torch
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


def heads_in_the_batch() -> onnx.ModelProto:
    """Attention whose heads lie in the batch axis for a while."""
    n = Net(17, ("N", 3, 8, 8))
    rows = n.op("Transpose", n.op("Reshape", n.conv("x", 3, 16), n.const([0, 16, 64])), perm=[2, 0, 1])
    parts = [n.op("MatMul", rows, n.weight(16, 16)) for _ in range(3)]
    q, k, v = (n.op("Transpose", n.op("Reshape", part, n.const([64, -1, 4])), perm=[1, 0, 2]) for part in parts)
    mixed = n.op("MatMul", n.op("Softmax", n.op("MatMul", q, n.op("Transpose", k, perm=[0, 2, 1])), axis=-1), v)
    back = n.op("Reshape", n.op("Transpose", mixed, perm=[1, 0, 2]), n.const([64, -1, 16]))
    return n.model(n.op("MatMul", n.op("ReduceMean", back, axes=[0], keepdims=0), n.weight(16, 5)))


def test_channels_that_lie_in_the_batch_axis_are_masked_at_every_batch() -> None:
    graph = from_model(heads_in_the_batch(), [(1, 3, 8, 8)])
    plan = irtool.plan(graph, "l1", ratio=0.5)
    assert plan.removed
    for batch in (1, 3):
        found = irtool.check_prune(graph, plan, (torch.randn(batch, 3, 8, 8),))
        assert found.ok
        assert not found.unresolved


def test_a_batch_of_two_that_is_written_in_is_kept_when_noise_refits() -> None:
    n = Net(17, (2, 3, 8, 8))
    graph = from_model(n.model(n.head(n.cbr(n.cbr("x", 3, 8), 8, 8), 8)), [(2, 3, 8, 8)])
    assert irtool.reconstruct(graph, irtool.plan(graph, "l1", ratio=0.5)).example_inputs[0].shape[0] == 2
