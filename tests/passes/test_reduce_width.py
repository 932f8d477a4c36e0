"""ReduceWidth: the widths of the models' own `width` argument, on graphs that have none."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import irtool
from irtool.errors import GraphError, OptionError
from irtool.models import VGG, PreResNet
from irtool.passes import ReduceWidth

IMAGE = torch.zeros(2, 3, 32, 32)


@pytest.mark.parametrize("ratio", [0.5, 0.25])
@pytest.mark.parametrize("make", [lambda width: VGG(11, width=width), lambda width: PreResNet(20, width=width)], ids=["vgg", "preresnet"])
def test_widths_are_those_of_the_models_own_argument(make, ratio: float) -> None:  # type: ignore[no-untyped-def]
    result = ReduceWidth(ratio)(irtool.trace(make(1.0).eval(), IMAGE))
    expected = {name: tuple(tensor.shape) for name, tensor in make(ratio).named_parameters()}
    assert {name: tuple(tensor.shape) for name, tensor in result.graph.module.named_parameters()} == expected
    assert result.graph.run(IMAGE).shape == (2, 10)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 10, 3)).eval()


def test_golden() -> None:
    graph = irtool.trace(small(), torch.zeros(1, 3, 8, 8))
    assert ReduceWidth(0.25)(graph).graph.text().splitlines() == [
        line.replace("1x16x", "1x4x").replace("@0.weight:16x", "@0.weight:4x").replace("10x16x", "10x4x").replace(":16", ":4")
        for line in graph.text().splitlines()
    ]


def test_fresh_weights_follow_the_seed_alone() -> None:
    """Not the old weights, and not the caller's random state, which is left alone."""
    one, other = irtool.trace(small(), IMAGE), irtool.trace(small(), IMAGE)
    for value in other.params.values():
        other.set_param(value.name, torch.rand_like(value.data) + 1)
    state = torch.random.get_rng_state()
    nets = [ReduceWidth(0.5, seed=seed)(graph).graph for graph, seed in ((one, 1), (other, 1), (one, 2))]
    assert torch.equal(torch.random.get_rng_state(), state)
    same, different = (all(torch.equal(nets[0].params[name].data, net.params[name].data) for name in nets[0].params) for net in nets[1:])
    assert same
    assert not different
    # torch's own start: uniform within 1 / sqrt(fan in), batch norm at the identity.
    weight = nets[0].params["0.weight"].data
    assert 0.8 / 27**0.5 < float(weight.abs().max()) <= 1 / 27**0.5
    assert torch.equal(nets[1].params["1.running_mean"].data, torch.zeros(8))
    assert torch.equal(nets[1].params["1.weight"].data, torch.ones(8))


def test_best_keeps_the_channels_that_rank_highest() -> None:
    graph = irtool.trace(small(), IMAGE)
    best = ReduceWidth(0.5, "best", "l2")(graph)
    weight = graph.params["0.weight"].data
    kept = weight.square().sum([1, 2, 3]).topk(8).indices.sort().values
    assert torch.equal(best.graph.params["0.weight"].data, weight[kept])
    assert torch.equal(best.graph.params["3.weight"].data, graph.params["3.weight"].data[:, kept])
    assert best.notes == ("18 of 26 channels stay",)  # the ten outputs are a layer too


class Loose(nn.Module):
    """Weights that belong to no layer: one that a convolution reads, one that nothing explains."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.scale = nn.Parameter(torch.full((8, 3, 3, 3), 9.0)), nn.Parameter(torch.full((1, 8, 1, 1), 0.5))
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.conv2d(x, self.kernel) * self.scale)


def test_loose_parameters() -> None:
    result = ReduceWidth(0.5)(irtool.trace(Loose().eval(), IMAGE))
    assert float(result.graph.params["kernel"].data.abs().max()) < 1
    assert torch.equal(result.graph.params["scale"].data, torch.full((1, 4, 1, 1), 0.5))
    assert result.notes[1:] == ("scale: nothing tells how it is initialised: it keeps its values",)


def test_it_goes_back_into_its_class_and_the_caller_keeps_the_graph(tmp_path) -> None:  # type: ignore[no-untyped-def]
    graph = irtool.trace(VGG(11, width=0.125).eval(), IMAGE)
    before = graph.params["features.0.weight"].data.clone()
    narrow = ReduceWidth(0.5, ignore=("features.0",))(graph).graph
    assert torch.equal(graph.params["features.0.weight"].data, before)
    assert narrow.params["features.0.weight"].shape == (8, 3, 3, 3)
    irtool.save(narrow, tmp_path / "net.safetensors")
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(irtool.load(tmp_path / "net.safetensors", VGG(11, width=0.125)).run(x), narrow.run(x))


def test_refusals(tmp_path) -> None:  # type: ignore[no-untyped-def]
    for ratio in (0.0, 1.5, "x"):
        with pytest.raises(OptionError, match="1/2 and 1/4 are usual"):
            ReduceWidth(ratio)  # type: ignore[arg-type]
    for seed in (-1, 2**64, "a"):
        with pytest.raises(OptionError, match="Give a whole number from 0"):
            ReduceWidth(0.5, seed=seed)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="Choose fresh or best"):
        ReduceWidth(0.5, "new")  # type: ignore[arg-type]
    irtool.export_onnx(irtool.trace(small(), IMAGE), tmp_path / "net.onnx")
    graph = irtool.load_onnx(tmp_path / "net.onnx")
    with pytest.raises(GraphError, match='init="best"'):
        ReduceWidth(0.5)(graph)
    assert ReduceWidth(0.5, "best")(graph).changed


class AppliedNorm(nn.Module):
    """A batch norm by function over (images, features)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        y = functional.batch_norm(self.first(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, self.training)
        return self.last(y)


@pytest.mark.parametrize("init", ["fresh", "best"])
def test_a_functional_batch_norm_behind_a_linear_layer(init: Literal["fresh", "best"]) -> None:
    graph = irtool.trace(AppliedNorm().eval(), torch.zeros(3, 6))
    narrow = ReduceWidth(0.5, init)(graph).graph
    assert narrow.run(torch.zeros(5, 6)).shape == (5, 4)
    assert narrow.params["first.weight"].shape == (4, 6)
