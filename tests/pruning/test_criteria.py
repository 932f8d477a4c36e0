"""The protocol of criteria."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import irtool
from irtool.errors import DataError, OptionError, PlanError
from irtool.models import VGG
from irtool.pruning.criteria.criteria import CRITERIA
from irtool.pruning.reconstruct.distance import distance


@pytest.fixture
def graph() -> irtool.FxGraph:
    torch.manual_seed(0)
    return irtool.trace(VGG(11, width=0.125).eval(), torch.zeros(2, 3, 32, 32))


def last_first(groups, seed):  # type: ignore[no-untyped-def]
    return -np.arange(groups.labels.count, dtype=float)


def test_a_function_of_ones_own(graph: irtool.FxGraph) -> None:
    plan = irtool.plan(graph, last_first, 0.2)
    assert plan.criterion == "last_first"
    assert plan.removed
    assert irtool.plan(graph, last_first, budget={"macs": 0.5}).removed


def test_a_name_is_given_once() -> None:
    with pytest.raises(OptionError, match="under another name"):
        irtool.criterion("l1")(last_first)
    assert CRITERIA["l1"].function is not last_first


def test_scores_of_another_shape_are_refused(graph: irtool.FxGraph) -> None:
    with pytest.raises(PlanError, match="for each of"):
        irtool.plan(graph, lambda groups, seed: np.zeros(3), 0.5)


@pytest.mark.parametrize("name", ["fisher", "taylor"])
def test_gradients_leave_the_model_alone(graph: irtool.FxGraph, name: str) -> None:
    before = {key: tensor.clone() for key, tensor in graph.module.state_dict().items()}
    flags = [parameter.requires_grad for parameter in graph.module.parameters()]
    plan = irtool.plan(graph, name, 0.4, data=torch.randn(6, 3, 32, 32))
    assert plan.removed
    assert irtool.plan(graph, name, 0.4, data=torch.randn(6, 3, 32, 32).split(2)).criterion == name
    assert all(torch.equal(before[key], tensor) for key, tensor in graph.module.state_dict().items())
    assert flags == [parameter.requires_grad for parameter in graph.module.parameters()]
    assert all(parameter.grad is None for parameter in graph.module.parameters())


def test_bn_output_is_what_a_relu_gives_on_average() -> None:
    """Against samples of the normal distribution; a channel whose shift silences it comes last, whatever its scale."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1)).eval()
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([1.0, -0.5, 2.0, 0.1]))
        net[1].bias.copy_(torch.tensor([0.0, 0.3, -9.0, 1.0]))
    groups = irtool.channel_groups(irtool.trace(net, torch.zeros(1, 3, 8, 8)))
    scores = CRITERIA["bn_output"].function(groups, 0)[groups.layers[0].labels.numpy()]
    drawn = net[1].bias.double() + net[1].weight.double() * torch.randn(200_000, 4, dtype=torch.float64)
    expected = drawn.relu().square().mean(0).sqrt().detach().numpy()
    assert scores == pytest.approx(expected, rel=0.02, abs=1e-3)
    assert scores.argmin() == 2


class WithNumber(nn.Module):
    """A net that gives a number beside its scores: a mean, or a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.last(torch.relu(self.first(x)).mean((2, 3)))
        return scores, scores.square().mean()


@pytest.mark.parametrize("name", ["fisher", "taylor", "hessian"])
def test_outputs_may_be_single_numbers(name: str) -> None:
    torch.manual_seed(0)
    graph, images = irtool.trace(WithNumber().eval(), torch.zeros(2, 3, 8, 8)), torch.randn(32, 3, 8, 8)
    plan = irtool.plan(graph, name, budget={"macs": 0.5}, data=images, round_to=1)
    assert len(plan.layers[0].removed) == 4
    assert float(distance([torch.tensor(3.0)], [torch.tensor(2.0)])) == pytest.approx(0.25)


@pytest.mark.parametrize("name", ["fisher", "taylor", "hessian"])
@pytest.mark.parametrize("net", [WithNumber(), nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 4))])
def test_outputs_that_are_not_finite_are_told(net: nn.Module, name: str) -> None:
    graph = irtool.trace(net.eval(), torch.zeros(2, 3, 8, 8))
    with pytest.raises(DataError, match="values that are not finite on these images"):
        irtool.plan(graph, name, 0.5, data=3e38 * torch.randn(4, 3, 8, 8).clamp(-1, 1))
