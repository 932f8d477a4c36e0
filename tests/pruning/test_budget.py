"""Budgets: kept exactly, used up, under every condition; and what is said when they cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import irtool
from irtool.errors import DataError, PlanError


def traced(name: str, size: int = 64) -> irtool.FxGraph:
    torch.manual_seed(0)
    return irtool.trace(torchvision.models.get_model(name, weights=None).eval(), torch.zeros(2, 3, size, size))


@pytest.fixture(scope="module")
def resnet() -> irtool.FxGraph:
    return traced("resnet18")


def shares(graph: irtool.FxGraph, plan: irtool.Plan) -> dict[str, float]:
    before, after = irtool.cost(graph), irtool.cost(irtool.prune(graph, plan))
    return {"macs": after.macs / before.macs, "params": after.params / before.params, "bytes": after.weight_bytes / before.weight_bytes}


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "regnet_y_400mf", "shufflenet_v2_x0_5", "densenet121"])
@pytest.mark.parametrize("budget", [{"macs": 0.5}, {"params": 0.4}, {"macs": 0.6, "params": 0.3}])
@pytest.mark.parametrize("residual", ["couple", "select"])
def test_is_kept_and_used(name: str, budget: dict[str, float], residual: str) -> None:
    graph = traced(name)
    found = shares(graph, irtool.plan(graph, "l2", residual=residual, round_to=1, budget=budget))
    used = [found[kind] / share for kind, share in budget.items()]
    assert max(used) <= 1 + 1e-9
    assert max(used) >= 0.97


def test_fisher_from_images(resnet: irtool.FxGraph) -> None:
    plan = irtool.plan(resnet, budget={"macs": 0.5}, data=torch.randn(4, 3, 64, 64))
    assert plan.criterion == "fisher"
    assert 0.485 <= shares(resnet, plan)["macs"] <= 0.5


class Two(nn.Module):
    """A layer whose channels two layers read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):  # type: ignore[no-untyped-def]
        hidden = self.first(x)
        return self.left(hidden) + self.right(torch.tanh(hidden))


def test_fisher_is_the_square_of_the_sum_over_readers() -> None:
    torch.manual_seed(0)
    model, x = Two().eval(), torch.randn(50, 3)
    plain = irtool.plan(irtool.trace(model, x[:2]), "fisher", budget={"macs": 0.9}, data=x)
    hidden = model.first(x).detach()
    gates = torch.ones(50, 4, requires_grad=True)
    means = hidden.mean(0), hidden.tanh().mean(0)
    scores = model.left(means[0] + gates * (hidden - means[0])) + model.right(means[1] + gates * (hidden.tanh() - means[1]))
    drawn = torch.multinomial(scores.detach().double().softmax(1), 1, generator=torch.Generator().manual_seed(0))[:, 0]
    nn.functional.cross_entropy(scores, drawn, reduction="sum").backward()
    expected = gates.grad.square().sum(0)
    assert plain.layers[0].removed == (int(expected.argmin()),)


def test_a_criterion_without_its_images_is_refused(resnet: irtool.FxGraph) -> None:
    with pytest.raises(DataError, match="Give data=images"):
        irtool.plan(resnet, "fisher", budget={"macs": 0.5})


def test_the_least_that_can_be_reached_is_told(resnet: irtool.FxGraph) -> None:
    with pytest.raises(
        PlanError, match=r"the least reachable is [\d,]+, .* % of the original, held up by .*ignore='layer4'.*or loosen ignore"
    ):
        irtool.plan(resnet, "l2", budget={"params": 0.1}, ignore="layer4")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"criterion": "bn_scale"}, "bn_scale has no score here"),
        ({"limits": {"*": 0.25}}, "a limit of 25%"),
        ({"min_channels": 12}, "min_channels=12"),
        ({"round_to": 16}, "round_to=16"),
        ({}, "the fewest that can stay"),
    ],
)
def test_what_holds_a_cost_up_is_told_by_its_own_name(options: dict[str, Any], reason: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 2, 1))
    graph = irtool.trace(net.eval(), torch.zeros(2, 3, 12, 12))
    with pytest.raises(PlanError, match=rf"held up by .* channels stay: {reason}"):
        irtool.plan(graph, **{"criterion": "l1", "budget": {"macs": 0.01}, **options})


@pytest.mark.parametrize("options", [{}, {"criterion": "fisher"}, {"criterion": "taylor"}, {"stages": 2}, {"criterion": "l2"}])
@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv2d(3, 8, 3)], ids=["linear", "conv"])
def test_a_net_of_one_layer_is_told_what_holds_it_up_whatever_scores_it(layer: nn.Module, options: dict[str, Any]) -> None:
    x = torch.randn(8, 6) if isinstance(layer, nn.Linear) else torch.randn(8, 3, 5, 5)
    graph = irtool.trace(layer.eval(), x[:2])
    with pytest.raises(PlanError, match=r"100\.0 % of the original, held up by .* is a graph output"):
        irtool.plan(graph, budget={"macs": 0.5}, data=x, **options)


@pytest.mark.parametrize("stages", [1, 2])
def test_a_net_without_layers_keeps_to_any_budget(stages: int) -> None:
    x = torch.randn(4, 3, 5, 5)
    graph = irtool.trace(nn.ReLU().eval(), x[:2])
    assert irtool.plan(graph, budget={"macs": 0.5, "params": 0.5}, data=x, stages=stages).removed == 0


def test_a_limit_is_told_as_it_was_given() -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    graph = irtool.trace(net.eval(), torch.zeros(2, 3, 8, 8))
    with pytest.raises(PlanError, match=r"0 \(15 of 16 channels stay: a limit of 10%\); 2 \(8 of 8 channels stay: a limit of 10%\)"):
        irtool.plan(graph, "l1", budget={"macs": 0.5}, limits={"*": 0.1})


@pytest.mark.parametrize("kind", ["macs", "params", "bytes"])
@pytest.mark.parametrize("scope", ["global", "local"])
def test_nothing_goes_from_a_net_that_keeps_to_its_budget_as_it_is(kind: str, scope: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, groups=4, bias=False), nn.Conv2d(32, 4, 1)
    )
    graph = irtool.trace(net.eval(), torch.zeros(2, 3, 12, 12))
    plan = irtool.plan(graph, "l1", budget={kind: 1.0}, scope=scope)
    assert not plan.removed
    assert irtool.cost(irtool.reconstruct(graph, plan, torch.randn(8, 3, 12, 12))).params == irtool.cost(graph).params


@pytest.mark.parametrize(
    "budget", [{}, {"flops": 0.5}, {"macs": 0}, {"macs": -1.0}, {"macs": float("nan")}, {"macs": "50%"}, {"macs": True}, 0.5]
)
def test_impossible_budgets_are_refused(resnet: irtool.FxGraph, budget: object) -> None:
    with pytest.raises(PlanError, match=r"Give shares or numbers|Choose among|Give a share"):
        irtool.plan(resnet, "l2", budget=budget)  # type: ignore[arg-type]


def test_conditions_hold(resnet: irtool.FxGraph) -> None:
    plan = irtool.plan(
        resnet, "l2", budget={"macs": 0.5}, round_to=8, min_channels=24, ignore="layer2", limits={"layer3.*": 0.25, "layer4": 0.5}
    )
    assert shares(resnet, plan)["macs"] <= 0.5
    for layer in plan.layers:
        assert layer.kept % 8 == 0 or not layer.removed
        assert layer.kept >= 24
        if layer.name.startswith("layer2"):
            assert not layer.removed
        if layer.name.startswith(("layer3", "layer4")):
            assert len(layer.removed) <= layer.total * (0.25 if layer.name.startswith("layer3") else 0.5)


def test_absolute_numbers(resnet: irtool.FxGraph) -> None:
    plan = irtool.plan(resnet, "l2", budget={"params": 3_000_000, "bytes": 20e6}, round_to=1)
    after = irtool.cost(irtool.prune(resnet, plan))
    assert 2_910_000 <= after.params <= 3_000_000


def test_a_ratio_beside_a_budget_is_refused(resnet: irtool.FxGraph) -> None:
    with pytest.raises(PlanError, match="Give one of them"):
        irtool.plan(resnet, "l2", 0.3, budget={"macs": 0.5})


def test_it_is_written_and_read(resnet: irtool.FxGraph) -> None:
    plan = irtool.plan(resnet, "l2", budget={"macs": 0.5}, limits={"layer3": 0.5})
    assert irtool.Plan.from_dict(plan.to_dict()) == plan
    assert "macs 50 %" in plan.summary()


def small_net() -> irtool.FxGraph:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip
    return irtool.trace(net.eval(), torch.zeros(1, 3, 16, 16))


def test_stages_give_one_plan_of_the_original() -> None:
    graph, images = small_net(), torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    limits = {"0": 0.25, "3": 0.5}
    plan = irtool.plan(graph, budget={"macs": 0.4}, data=images, stages=2, limits=limits)
    once = irtool.plan(graph, budget={"macs": 0.4}, data=images, limits=limits)
    assert plan.stages == 2
    assert plan.budget == {"macs": 0.4}
    assert plan.layers != once.layers
    assert [(layer.name, layer.total) for layer in plan.layers] == [(layer.name, layer.total) for layer in once.layers]
    for layer in plan.layers:
        assert len(layer.removed) <= limits.get(layer.name, 1.0) * layer.total
    again = irtool.Plan.from_dict(plan.to_dict())
    assert again == plan
    assert 0.9 * 0.4 <= shares(graph, again)["macs"] <= 0.4
    assert irtool.check_prune(graph, again).ok


def test_stages_need_a_budget_and_images() -> None:
    graph = small_net()
    with pytest.raises(PlanError, match="stages lead to a budget"):
        irtool.plan(graph, "l1", stages=2)
    with pytest.raises(DataError, match="refitted on images"):
        irtool.plan(graph, "l1", budget={"macs": 0.5}, stages=2)
    with pytest.raises(PlanError, match="no number of stages"):
        irtool.plan(graph, "l1", budget={"macs": 0.5}, stages=0)


def test_local_takes_equal_shares(resnet: irtool.FxGraph) -> None:
    plan = irtool.plan(resnet, "l2", scope="local", budget={"macs": 0.5}, round_to=1)
    assert 0.97 * 0.5 <= shares(resnet, plan)["macs"] <= 0.5
    lost = [len(layer.removed) / layer.total for layer in plan.layers if layer.removed]
    assert max(lost) - min(lost) < 1 / 32  # two channels of the narrowest layer
    assert plan.layers != irtool.plan(resnet, "l2", budget={"macs": 0.5}).layers


def test_isomorphic_ranks_alike_layers_together() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 4),
    )  # fmt: skip
    with torch.no_grad():
        for number in (8, 10):
            net[number].weight.mul_(1000)
    graph = irtool.trace(net.eval(), torch.zeros(1, 3, 16, 16))
    plan = irtool.plan(graph, lambda groups, seed: by_norm(groups), 0.5, scope="isomorphic", round_to=1)
    lost = {layer.name: len(layer.removed) for layer in plan.layers}
    assert lost["0"] + lost["2"] == 16  # convolutions read by convolutions: half of the two together
    assert lost["8"] + lost["10"] == 20
    assert not [
        layer
        for layer in irtool.plan(graph, lambda groups, seed: by_norm(groups), 0.5, round_to=1).layers
        if layer.removed and layer.name == "8"
    ]
    assert 0.9 * 0.6 <= shares(graph, irtool.plan(graph, "l2", scope="isomorphic", budget={"macs": 0.6}, round_to=1))["macs"] <= 0.6


def by_norm(groups):  # type: ignore[no-untyped-def]
    found = np.full(groups.labels.count, np.nan)
    for layer in groups.layers:
        found[layer.labels.numpy()] = groups.graph.params[layer.key[0]].data.flatten(1).norm(dim=1).numpy()
    return found


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("budget", [{"macs": 0.5}, {"params": 0.5}])
def test_rounded_widths_keep_to_it(resnet: irtool.FxGraph, scope: str, budget: dict[str, float]) -> None:
    plan = irtool.plan(resnet, "l2", scope=scope, budget=budget, round_to=8)
    ((kind, share),) = budget.items()
    assert 0.9 * share <= shares(resnet, plan)[kind] <= share
    assert all(layer.kept % 8 == 0 or layer.kept == layer.total for layer in plan.layers)


@pytest.mark.parametrize("budget", [{"macs": 0.5}, {"params": 0.4}, {"bytes": 0.5, "macs": 0.7}])
@pytest.mark.parametrize("scope", ["global", "local"])
def test_onnx_graphs_keep_to_it(tmp_path: Path, budget: dict[str, float], scope: str) -> None:
    irtool.export_onnx(small_net(), tmp_path / "m.onnx")
    graph = irtool.load_onnx(tmp_path / "m.onnx")
    plan = irtool.plan(graph, "l2", scope=scope, budget=budget, round_to=1)
    before, after = irtool.cost(graph), irtool.cost(irtool.prune(graph, plan))
    left = {"macs": after.macs / before.macs, "params": after.params / before.params, "bytes": after.weight_bytes / before.weight_bytes}
    used = [left[kind] / share for kind, share in budget.items()]
    least = 0.97 if scope == "global" else 0.85  # equal shares of twelve channels are coarse
    assert least <= max(used) <= 1 + 1e-9


@pytest.mark.parametrize("kind", ["macs", "params", "bytes"])
@pytest.mark.parametrize("share", [0.3, 0.45, 0.6, 0.8])
def test_units_are_exchanged_until_a_small_net_uses_its_budget(kind: str, share: float) -> None:
    """One channel of the first layer is a tenth of this net: what is left over fits no single one."""
    graph = small_net()
    found = shares(graph, irtool.plan(graph, "l2", budget={kind: share}, round_to=1))
    assert 0.97 * share <= found[kind] <= share


class Shared(nn.Module):
    """One convolution, called twice: its channels cost twice, and coarse steps miss a budget by a third."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.out = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 24, 3, padding=1), nn.Conv2d(24, 30, 3)
        self.norms, self.head = nn.ModuleList(nn.BatchNorm2d(24) for _ in range(2)), nn.Linear(30, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        for norm in self.norms:
            x = norm(self.conv(x)).relu()
        found: torch.Tensor = self.head(self.out(x).relu().mean((2, 3)))
        return found


@pytest.mark.parametrize("share", [0.5, 0.7])
def test_steps_that_leave_much_of_a_budget_are_made_finer_and_it_is_told(share: float) -> None:
    torch.manual_seed(0)
    graph = irtool.trace(Shared().eval(), torch.zeros(2, 3, 16, 16))
    plan = irtool.plan(graph, "l1", budget={"macs": share})
    assert 0.97 <= shares(graph, plan)["macs"] / share <= 1
    assert any(note.startswith("finer multiples of channels") for note in plan.notes)
