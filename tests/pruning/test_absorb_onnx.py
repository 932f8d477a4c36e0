"""Absorbed constants in ONNX files: against the file itself in onnxruntime, where channels are exactly constant."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from onnx_nets import Net

import irtool
from irtool.hosts.onnx.files.load import from_model


class Constant(Net):
    """After the first batch norm every second of 16 channels is constant."""

    def start(self) -> str:
        y = self.bn(self.conv("x", 3, 16, 1), 16)
        scale = self.nodes[-1].input[1]
        self.weights[scale] = np.where(np.arange(16) % 2, self.weights[scale], 0).astype(np.float32)
        return y

    def pooled(self, y: str, **attrs: object) -> str:
        return self.op("AveragePool", self.op("Relu", y), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], **attrs)

    def transposed(self, y: str, groups: int, k: int, **attrs: object) -> str:
        return self.op("ConvTranspose", y, self.weight(16, 4, k, k), group=groups, **attrs)


def _shared_bias(n: Constant) -> tuple[str, ...]:
    y, bias = n.start(), n.weight(4)
    return tuple(n.op("Conv", n.op(kind, y), n.weight(4, 16, 1, 1), bias) for kind in ("Relu", "Sigmoid"))


def _twice(n: Constant) -> tuple[str, ...]:
    y, weight, bias = n.start(), n.weight(4, 16, 1, 1), n.weight(4)
    return n.op("Conv", y, weight, bias), n.op("Conv", n.op("Identity", y), weight, bias)


CASES: dict[str, Callable[[Constant], tuple[str, ...]]] = {
    "padding_left_out": lambda n: (n.conv(n.pooled(n.start()), 16, 4, 1),),
    "padding_counted": lambda n: (n.conv(n.pooled(n.start(), count_include_pad=1), 16, 4, 1),),
    "crelu": lambda n: (n.conv(n.op("Concat", n.op("Relu", y := n.start()), n.op("Neg", y), axis=1), 32, 4, 1),),
    "shared_bias": _shared_bias,
    "called_twice": _twice,
    "product": lambda n: (n.op("MatMul", n.op("Transpose", n.start(), perm=[0, 2, 3, 1]), n.weight(16, 4)),),
    "transposed": lambda n: (n.transposed(n.start(), 2, 3, strides=[2, 2], pads=[1, 1, 0, 0]),),
    "transposed_one_tap": lambda n: (n.transposed(n.start(), 1, 1),),
}
BORDERS = {"padding_counted", "transposed"}


@pytest.mark.parametrize("name", CASES)
def test_constant_channels_are_absorbed(name: str) -> None:
    n = Constant()
    outputs = CASES[name](n)
    graph = from_model(n.model(*outputs, ranks=[4] * len(outputs)))
    plan = irtool.plan(graph, "bn_scale", 0.5, "local")
    assert plan.layers[0].removed == tuple(range(0, 16, 2))
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 12, 12)).astype(np.float32))
    errors = {}
    for how in ("absorb", "drop"):
        off = [a - b for a, b in zip(graph.run(x), irtool.prune(graph, plan, how).run(x), strict=True)]
        axes = {d for d in range(4) if d != (3 if name == "product" else 1)} if name in BORDERS else ()
        errors[how] = max(float((each.mean(tuple(axes)) if axes else each).abs().max()) for each in off)
    assert errors["absorb"] < 1e-5 < 1e-2 < errors["drop"]
    assert irtool.check_prune(graph, plan, constants="absorb").ok


def test_padding_that_the_file_leaves_to_the_runtime_is_not_guessed() -> None:
    n = Constant()
    graph = from_model(n.model(n.transposed(n.start(), 1, 3, strides=[2, 2], auto_pad="SAME_UPPER"), ranks=[4]))
    result = irtool.Prune(irtool.plan(graph, "bn_scale", 0.5, "local"), "absorb")(graph)
    assert any("is dropped: no bias that could take it up" in note for note in result.notes)
