"""Quantised files: weights that are floats between QuantizeLinear and DequantizeLinear are pruned; integer layers stay, and say why."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto
from onnx_nets import Net

import irtool
from irtool.hosts.onnx.files.load import from_model


def faked(n: Net, weight: str, axis: int) -> str:
    """A weight rounded to 8 bits, at one scale for each entry of an axis, as exporters of quantisation-aware training write it."""
    data = n.weights[weight]
    top = np.abs(data).max(axis=tuple(other for other in range(data.ndim) if other != axis))
    scale, zero = n.const(top / 127, np.float32), n.const(np.zeros(len(top)), np.int8)
    return n.op("DequantizeLinear", n.op("QuantizeLinear", weight, scale, zero, axis=axis), scale, zero, axis=axis)


def rounded(n: Net, x: str) -> str:
    """A value rounded to 8 bits."""
    scale, zero = n.const(0.05, np.float32), n.const(0, np.int8)
    return n.op("DequantizeLinear", n.op("QuantizeLinear", x, scale, zero), scale, zero)


def convolutions(n: Net) -> str:
    x = "x"
    for cin, cout, groups in ((3, 8, 1), (8, 12, 1), (12, 12, 12), (12, 12, 1)):
        weight = faked(n, n.weight(cout, cin // groups, 3, 3), 0)
        x = n.op("Relu", n.op("Conv", rounded(n, x), weight, n.weight(cout), pads=[1] * 4, group=groups))
    return n.head(x, 12)


def transposed(n: Net) -> str:
    x = n.op("Relu", n.op("Conv", rounded(n, "x"), faked(n, n.weight(8, 3, 3, 3), 0), n.weight(8)))
    x = n.op("Relu", n.op("ConvTranspose", rounded(n, x), faked(n, n.weight(8, 10, 2, 2), 1), n.weight(10), strides=[2, 2]))
    return n.head(x, 10)


def linear(n: Net) -> str:
    x = n.op("Flatten", n.op("GlobalAveragePool", n.op("Relu", n.conv("x", 3, 8))))
    x = n.op("Relu", n.op("Gemm", rounded(n, x), faked(n, n.weight(16, 8), 0), n.weight(16), transB=1))
    x = n.op("Relu", n.op("Add", n.op("MatMul", rounded(n, x), faked(n, n.weight(16, 12), 1)), n.weight(12)))
    return n.op("MatMul", x, faked(n, n.weight(12, 4), 1))


def activations(n: Net) -> str:
    """Scales for each channel of what flows."""
    x = n.op("Relu", n.conv("x", 3, 8))
    scale, zero = n.const(np.linspace(0.02, 0.05, 8), np.float32), n.const(np.full(8, 128), np.uint8)
    x = n.op("DequantizeLinear", n.op("QuantizeLinear", x, scale, zero, axis=1), scale, zero, axis=1)
    return n.head(n.op("Relu", n.conv(x, 8, 8)), 8)


FAKED: dict[str, Callable[[Net], str]] = {
    "convolutions": convolutions,
    "transposed": transposed,
    "linear": linear,
    "activations": activations,
}


@pytest.mark.parametrize("name", FAKED)
def test_float_weights_between_quantisers_are_pruned_like_any_other(name: str) -> None:
    n = Net(17, ("N", 3, 12, 12))
    model = n.model(FAKED[name](n))
    onnx.checker.check_model(model, full_check=True)
    graph = from_model(model)
    plan = irtool.plan(graph, "l1", ratio=0.5)
    found = irtool.check_prune(graph, plan, graph.example_inputs)
    assert found.ok, found
    assert not found.unresolved
    pruned = irtool.prune(graph, plan)
    sizes = [sum(value.data.numel() for value in some.params.values() if value.data is not None) for some in (graph, pruned)]
    assert sizes[1] < 0.6 * sizes[0]
    kinds = [[node.op for node in some.host.nodes].count("QuantizeLinear") for some in (graph, pruned)]
    assert kinds[0] == kinds[1]
    session = ort.InferenceSession(pruned.proto.SerializeToString(), providers=["CPUExecutionProvider"])
    session.run(None, {"x": np.ones((3, 3, 12, 12), np.float32)})


def scales(n: Net) -> tuple[str, str, str, str]:
    return n.const(0.03, np.float32), n.const(128, np.uint8), n.const(0.01, np.float32), n.const(0, np.int8)


def integers(n: Net, *shape: int) -> str:
    return n.const(n.rng.integers(-90, 90, shape), np.int8)


def qlinear(n: Net, x: str) -> str:
    s, z, ws, wz = scales(n)
    q = n.op("QLinearConv", n.op("QuantizeLinear", x, s, z), s, z, integers(n, 8, 8, 3, 3), ws, wz, s, z, pads=[1] * 4)
    return n.op("DequantizeLinear", q, s, z)


def conv_integer(n: Net, x: str) -> str:
    q, s, z = n.op("DynamicQuantizeLinear", x, outputs=3)
    y = n.op("ConvInteger", q, integers(n, 8, 8, 3, 3), z, n.const(0, np.int8), pads=[1] * 4)
    return n.op("Mul", n.op("Cast", y, to=TensorProto.FLOAT), n.op("Mul", s, n.const(0.01, np.float32)))


def matmul_integer(n: Net, x: str) -> str:
    q, s, z = n.op("DynamicQuantizeLinear", n.op("Transpose", x, perm=[0, 2, 3, 1]), outputs=3)
    y = n.op("MatMulInteger", q, integers(n, 8, 8), z, n.const(0, np.int8))
    y = n.op("Mul", n.op("Cast", y, to=TensorProto.FLOAT), n.op("Mul", s, n.const(0.01, np.float32)))
    return n.op("Transpose", y, perm=[0, 3, 1, 2])


@pytest.mark.parametrize("make", [qlinear, conv_integer, matmul_integer], ids=lambda make: make.__name__)
def test_integer_layers_are_left_alone_with_the_reason(make: Callable[[Net, str], str]) -> None:
    n = Net(17, (1, 3, 12, 12))
    x = n.op("Relu", n.conv(n.op("Relu", n.conv("x", 3, 8)), 8, 8))
    model = n.model(n.head(n.op("Relu", n.conv(n.op("Relu", make(n, x)), 8, 10)), 10))
    graph = from_model(model)
    reasons = {pin.reason for pin in irtool.channel_groups(graph).reasons.values()}
    assert "is computed in integers with scales of its own: prune the float model, then quantise it" in reasons
    plan = irtool.plan(graph, "l1", ratio=0.5)
    assert irtool.check_prune(graph, plan, graph.example_inputs).ok
    pruned = irtool.prune(graph, plan)
    kept, old = ({name: value.sizes for name, value in some.params.items()} for some in (pruned, graph))
    stored = [name for name, value in graph.params.items() if value.data is not None and not value.data.is_floating_point()]
    assert stored
    assert all(kept[name] == old[name] for name in stored)
    assert sum(np.prod(shape) for shape in kept.values()) < sum(np.prod(shape) for shape in old.values())
