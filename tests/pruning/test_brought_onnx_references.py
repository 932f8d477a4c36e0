"""Steps that mix channels in ways of their own: bins of a distribution stay, convolutions over channels have an exact reference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx_nets import Net
from torch import nn

import irtool
from irtool.hosts.onnx.files.load import from_model

SIDES, COUNT = 4, 8
PLACES = np.arange(COUNT, dtype=np.float32)


def by_conv(n: Net, x: str) -> str:
    """YOLOv8's."""
    x = n.op("Reshape", x, n.const([1, SIDES, COUNT, 64]))
    x = n.op("Softmax", n.op("Transpose", x, perm=[0, 2, 1, 3]), axis=1)
    return n.op("Conv", x, n.const(PLACES.reshape(1, COUNT, 1, 1), np.float32))


def by_matmul(n: Net, x: str) -> str:
    """RTMDet's and NanoDet's."""
    x = n.op("Reshape", n.op("Transpose", x, perm=[0, 2, 3, 1]), n.const([-1, COUNT]))
    return n.op("MatMul", n.op("Softmax", x, axis=-1), n.const(PLACES.reshape(COUNT, 1), np.float32))


def by_vector(n: Net, x: str) -> str:
    x = n.op("Reshape", n.op("Transpose", x, perm=[0, 2, 3, 1]), n.const([1, 64, SIDES, COUNT]))
    return n.op("MatMul", n.op("Softmax", x, axis=-1), n.const(PLACES, np.float32))


def by_gemm(n: Net, x: str) -> str:
    x = n.op("Reshape", n.op("Transpose", x, perm=[0, 2, 3, 1]), n.const([-1, COUNT]))
    return n.op("Gemm", n.op("Softmax", x, axis=-1), n.const(PLACES.reshape(1, COUNT), np.float32), transB=1)


def by_einsum(n: Net, x: str) -> str:
    x = n.op("Softmax", n.op("Reshape", x, n.const([1, SIDES, COUNT, 64])), axis=2)
    return n.op("Einsum", x, n.const(PLACES, np.float32), equation="bscp,c->bsp")


def by_product_and_sum(n: Net, x: str) -> str:
    """A soft-argmax."""
    x = n.op("Softmax", n.op("Reshape", x, n.const([1, SIDES, COUNT, 64])), axis=2)
    return n.op("ReduceSum", n.op("Mul", x, n.const(PLACES.reshape(1, 1, COUNT, 1), np.float32)), n.const([2]), keepdims=0)


WAYS = {
    "conv": by_conv,
    "matmul": by_matmul,
    "vector": by_vector,
    "gemm": by_gemm,
    "einsum": by_einsum,
    "sum": by_product_and_sum,
}


def bins(way: str) -> onnx.ModelProto:
    """Box sides as means of distributions over bins."""
    n = Net(17, (1, 3, 8, 8))
    x = n.conv(n.cbr(n.cbr("x", 3, 12), 12, 12), 12, SIDES * COUNT, 1)
    return n.model(n.op("Flatten", WAYS[way](n, x)))


def disparity() -> onnx.ModelProto:
    """One distribution over all channels of a layer, and its mean: stereo and depth nets."""
    n = Net(17)
    x = n.op("Softmax", n.conv(n.cbr("x", 3, 12), 12, 16, 1), axis=1)
    x = n.op("Mul", x, n.const(np.linspace(1, 9, 16).reshape(1, 16, 1, 1), np.float32))
    return n.model(n.op("Flatten", n.op("ReduceSum", x, n.const([1]))))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ratio", [0.3, 0.5])
def test_bins_of_a_distribution_stay(way: str, ratio: float) -> None:
    graph = from_model(bins(way))
    plan = irtool.plan(graph, "random", ratio)
    *trunk, last = plan.layers
    assert (len(last.removed), last.reason.split(" (at")[0]) in [
        (0, "bins of a distribution whose mean is taken over fixed numbers"),
        (0, "matrix product with a vector"),
    ]
    assert all(layer.removed for layer in trunk)
    assert irtool.check_prune(graph, plan).ok


def test_bins_of_one_distribution_stay() -> None:
    graph = from_model(disparity())
    plan = irtool.plan(graph, "random", 0.5)
    assert [len(layer.removed) for layer in plan.layers][-1] == 0
    assert plan.layers[0].removed
    assert irtool.check_prune(graph, plan).ok


class TorchBins(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 32, 1), nn.Conv2d(8, 1, 1, bias=False)
        self.c.weight.data[:] = torch.arange(8.0).view(1, 8, 1, 1)
        self.c.weight.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.b(self.a(x).relu()).flatten(2)
        return self.c(x.view(x.shape[0], 4, 8, x.shape[2]).transpose(2, 1).softmax(1)).flatten(1)


def test_bins_of_a_distribution_stay_in_torch() -> None:
    graph = irtool.trace(TorchBins(), torch.randn(1, 3, 8, 8))
    plan = irtool.plan(graph, "random", 0.5)
    assert {layer.name: bool(layer.removed) for layer in plan.layers}["b"] is False
    assert plan.removed
    assert irtool.check_prune(graph, plan).ok


def eca(rank: int) -> onnx.ModelProto:
    """Channel attention by a convolution along the channels."""
    n = Net(17)
    x = n.cbr("x", 3, 16)
    pooled = n.op("GlobalAveragePool", x)
    if rank == 3:
        row = n.op("Transpose", n.op("Squeeze", pooled, n.const([3])), perm=[0, 2, 1])
        row = n.op("Conv", row, n.weight(1, 1, 5), pads=[2, 2])
        gate = n.op("Unsqueeze", n.op("Transpose", row, perm=[0, 2, 1]), n.const([3]))
    else:
        row = n.op("Conv", n.op("Transpose", pooled, perm=[0, 2, 1, 3]), n.weight(1, 1, 3, 1), n.weight(1), pads=[1, 0, 1, 0])
        gate = n.op("Transpose", row, perm=[0, 2, 1, 3])
    return n.model(n.head(n.cbr(n.op("Mul", x, n.op("Sigmoid", gate)), 16, 8), 8))


def split_softmax(axis: int) -> onnx.ModelProto:
    """A softmax within groups of channels that gates, so that each group may lose channels of its own."""
    n = Net(17, (1, 3, 6, 6))
    x = n.cbr("x", 3, 16)
    y = n.op("Reshape", n.conv(x, 16, 16), n.const([1, 4, 4, 36]))
    gate = n.op("Reshape", n.op("Softmax", y, axis=axis), n.const([1, 16, 6, 6]))
    return n.model(n.head(n.cbr(n.op("Mul", x, gate), 16, 8), 8))


def split_norm(kind: str) -> onnx.ModelProto:
    """A norm or a reduction over the channels of a head, beside positions."""
    n = Net(17, (1, 3, 6, 6))
    tokens = n.op("Transpose", n.op("Reshape", n.cbr("x", 3, 16), n.const([1, 16, 36])), perm=[0, 2, 1])
    y = n.op("Reshape", n.op("MatMul", tokens, n.weight(16, 16)), n.const([1, 36, 4, 4]))
    if kind == "LayerNormalization":
        y = n.op(kind, y, n.weight(4, low=0.5), n.weight(4))
    elif kind == "LpNormalization":
        y = n.op(kind, y, axis=-1)
    elif kind == "CumSum":
        y = n.op(kind, y, n.const(3))
    else:
        y = n.op("Div", y, n.op("Add", n.op("ReduceL2", y, axes=[3]), n.const(0.1, np.float32)))
    return n.model(n.op("ReduceMean", n.op("MatMul", n.op("Reshape", y, n.const([1, 36, 16])), n.weight(16, 5)), axes=[1], keepdims=0))


def several_axes_norm() -> onnx.ModelProto:
    """A layer norm over channels, rows and columns with a scale for each entry."""
    n = Net(17, (1, 3, 6, 6))
    x = n.op("LayerNormalization", n.cbr("x", 3, 12), n.weight(12, 6, 6, low=0.5), n.weight(12, 6, 6), axis=1)
    return n.model(n.head(n.cbr(x, 12, 8), 8))


REFERENCES: dict[str, Callable[[], onnx.ModelProto]] = {
    "eca 1d": lambda: eca(3), "eca 2d": lambda: eca(4), "softmax in groups": lambda: split_softmax(2),
    "softmax over groups": lambda: split_softmax(1), "layer norm over an image": several_axes_norm,
    **{f"{kind} in heads": lambda kind=kind: split_norm(kind) for kind in ("LayerNormalization", "LpNormalization", "CumSum", "ReduceL2")},
}  # fmt: skip


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("criterion", ["l1", "random"])
def test_steps_that_mix_channels_have_an_exact_reference(name: str, criterion: str) -> None:
    graph = from_model(REFERENCES[name]())
    plan = irtool.plan(graph, criterion, 0.5)
    assert plan.removed
    found = irtool.check_prune(graph, plan)
    assert found.unresolved == ()
    assert found.ok
