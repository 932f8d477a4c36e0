"""`fold_constants` on both hosts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx_nets import NETS, Net
from torch import Tensor, nn
from torch.nn import functional

import irtool
from irtool.hosts.onnx.files.load import from_model


class Standardised(nn.Module):
    """A convolution whose weight is computed from a parameter, and a table cut to the size of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.table = nn.Parameter(torch.randn(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.conv.weight - self.conv.weight.mean((1, 2, 3), keepdim=True)) * 2
        y = nn.functional.conv2d(x, weight, self.conv.bias)
        return y + self.table[: x.shape[2]].mean(0).reshape(1, 4, 1, 1)


def test_torch_weights_are_computed_once() -> None:
    torch.manual_seed(0)
    graph = irtool.trace(Standardised().eval(), torch.zeros(1, 3, 4, 4))
    before = graph.text()
    assert "Sub(@conv.weight:4x3x1x1, %conv)" in before
    result = irtool.Pipeline([irtool.FoldConstants()], check=True)(graph)
    after = result.graph.text()
    assert "%conv:1x4x4x4 = Conv(%input, @constant_mul:4x3x1x1, @conv.bias:4)" in after
    assert "Sub(" not in after
    assert "3 operators on parameters alone were computed" in result.notes[0]
    assert graph.text() == before


def test_what_depends_on_the_size_of_an_input_is_not_folded() -> None:
    graph = irtool.trace(Standardised().eval(), torch.zeros(1, 3, 4, 4))
    folded = irtool.FoldConstants()(graph).graph
    x = torch.randn(1, 3, 6, 6)
    torch.testing.assert_close(folded.run(x), graph.run(x))


def sizes_net(batch: int | str, width: int | str) -> onnx.ModelProto:
    """A flatten whose sizes are computed: the batch, and channels times height times width from Shape."""
    n = Net(14, (batch, 3, 6, width))
    x = n.cbr("x", 3, 8)
    shape = n.op("Shape", x)
    batch_size = n.op("Unsqueeze", n.op("Gather", shape, n.const(0), axis=0), n.const([0]))
    features = n.op("ReduceProd", n.op("Slice", shape, n.const([1]), n.const([4])), axes=[0], keepdims=1)
    x = n.op("Reshape", x, n.op("Concat", batch_size, features, axis=0))
    return n.model(n.op("Gemm", x, n.weight(8 * 36, 5), n.weight(5)))


@pytest.mark.parametrize(("batch", "width", "left"), [(2, 6, 0), ("N", 6, 4), ("N", "W", 6)])
def test_sizes_become_constants_where_no_input_can_change_them(batch: int | str, width: int | str, left: int) -> None:
    """All of them; all but the batch's; or, since a free width may be any, none."""
    model = sizes_net(batch, width)
    graph = from_model(model, {"x": (2, 3, 6, 6)})
    result = irtool.Pipeline([irtool.FoldConstants()], check=True)(graph)
    assert result.changed is (left < 6)
    folded = result.graph.proto
    onnx.checker.check_model(folded, full_check=True)
    computing = [
        node.op_type for node in folded.graph.node if node.op_type in ("Shape", "Gather", "Unsqueeze", "Slice", "ReduceProd", "Concat")
    ]
    assert len(computing) == left
    session, original = (onnxruntime.InferenceSession(m.SerializeToString()) for m in (folded, model))
    for n in (2,) if batch == 2 else (1, 3):
        x = np.random.default_rng(n).normal(size=(n, 3, 6, 6)).astype(np.float32)
        np.testing.assert_allclose(session.run(None, {"x": x})[0], original.run(None, {"x": x})[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["shape_chain", "halves_by_shape", "positions", "upsampled"])
def test_folded_graphs_prune_like_the_others(name: str) -> None:
    graph = from_model(NETS[name]())
    folded = irtool.Pipeline([irtool.FoldConstants(), irtool.RemoveIdentity(), irtool.DeadCode()], check=True)(graph).graph
    plans = [irtool.plan(g, "l1", 0.5) for g in (graph, folded)]
    assert [layer.removed for layer in plans[0].layers] == [layer.removed for layer in plans[1].layers]
    assert irtool.check_prune(folded, plans[1]).relative <= 1e-5


class Held(nn.Module):
    """A parameter, and what a forward does with it."""

    def __init__(self, compute: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.p, self.compute = nn.Parameter(torch.randn(1, 4, 8, 8)), compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, x)


RANDOM = {
    "rrelu": lambda net, x: x + functional.rrelu(-net.p, training=True),
    "dropout2d": lambda net, x: x + functional.dropout2d(net.p * 2, training=True),
    "attention": lambda net, x: x + functional.scaled_dot_product_attention(net.p, net.p, net.p, dropout_p=0.5),
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_operators_are_no_constants(name: str) -> None:
    graph, x = irtool.trace(Held(RANDOM[name]).eval(), torch.zeros(1, 4, 8, 8)), torch.zeros(1, 4, 8, 8)
    state = torch.random.get_rng_state()
    folded = irtool.FoldConstants()(graph).graph
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(folded.run(x), folded.run(x))


def adds_to_a_constant(net: nn.Module, x: Tensor) -> Tensor:
    y = net.p * 2
    y.add_(x)
    return y.relu()


def adds_to_what_is_read_later(net: nn.Module, x: Tensor) -> Tensor:
    y = net.p.reshape(1, 8, 4, 8) * 1
    z = y.reshape(1, 4, 8, 8)
    z.add_(x)
    return y.square()


def adds_to_a_part(net: nn.Module, x: Tensor) -> Tensor:
    y = net.p * 2
    y.narrow(1, 0, 1).add_(x.mean())
    return y + x


@pytest.mark.parametrize("compute", [adds_to_a_constant, adds_to_a_part, adds_to_what_is_read_later])
def test_what_is_written_over_is_no_constant(compute: Callable[[nn.Module, Tensor], Tensor]) -> None:
    graph = irtool.trace(Held(compute).eval(), torch.zeros(1, 4, 8, 8))
    folded, x = irtool.FoldConstants()(graph).graph, torch.randn(1, 4, 8, 8)
    for _ in range(2):
        assert torch.equal(folded.run(x), graph.run(x))
