"""Plans: the published rule, conditions that always hold, options that cannot work, JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import irtool
from irtool.errors import FileError, PlanError
from irtool.models import PreResNet


def vgg(widths: tuple[int, ...] = (8, 12, 16)) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in zip((3, *widths), widths, strict=False):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 5))
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data = torch.rand(module.num_features, generator=generator)
    return net.eval()


@pytest.fixture
def graph() -> irtool.FxGraph:
    return irtool.trace(vgg(), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.7])
def test_the_published_rule_is_reproduced(graph: irtool.FxGraph, ratio: float) -> None:
    """|gamma| above the value at index int(N * ratio) of the sorted list stays (network slimming)."""
    scales = [m.weight.data.abs() for m in graph.module.modules() if isinstance(m, nn.BatchNorm2d)]
    ranked = torch.cat(scales).sort().values
    threshold = ranked[int(len(ranked) * ratio)]
    plan = irtool.plan(graph, "bn_scale", ratio, round_to=1)
    assert [layer.kept for layer in plan.layers[:3]] == [int((scale > threshold).sum()) for scale in scales]


def test_local_scope_takes_the_share_of_each_layer(graph: irtool.FxGraph) -> None:
    assert [layer.kept for layer in irtool.plan(graph, "l1", 0.5, "local").layers] == [4, 6, 8, 5]


def test_the_weakest_filters_go() -> None:
    net = vgg()
    strength = torch.tensor([5.0, 1.0, 4.0, 2.0, 8.0, 3.0, 7.0, 6.0])
    net[0].weight.data = strength[:, None, None, None] * torch.ones_like(net[0].weight)
    for criterion in ("l1", "l2"):
        plan = irtool.plan(irtool.trace(net, torch.zeros(1, 3, 8, 8)), criterion, 0.5, "local")
        assert plan.layers[0].removed == (1, 2, 3, 5)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.95, 0.999])
@pytest.mark.parametrize("criterion", ["bn_scale", "l1", "l2", "random"])
def test_no_layer_is_emptied(graph: irtool.FxGraph, criterion: str, ratio: float) -> None:
    plan = irtool.plan(graph, criterion, ratio)
    assert min(layer.kept for layer in plan.layers) >= 1
    assert (plan.removed == 0) == (ratio == 0)
    irtool.prune(graph, plan, "drop").run(torch.zeros(1, 3, 8, 8))


def test_min_channels_and_rounding_hold(graph: irtool.FxGraph) -> None:
    plan = irtool.plan(graph, "bn_scale", 0.9, min_channels=3)
    assert min(layer.kept for layer in plan.layers) >= 3
    rounded = irtool.plan(graph, "bn_scale", 0.6, round_to=4)
    assert all(layer.kept % 4 == 0 for layer in rounded.layers[:3])


def test_ignored_layers_stay_and_say_so(graph: irtool.FxGraph) -> None:
    plan = irtool.plan(graph, "l1", 0.5, "local", ignore=["3"])
    assert [layer.kept for layer in plan.layers] == [4, 12, 8, 5]
    assert plan.layers[1].reason == "ignore='3' (at 3)"
    assert plan.layers[3].reason == "is a graph output (at output)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.5}, "ratio 1.5 is not a fraction.*0 <= ratio < 1"),
        ({"ratio": -0.1}, "ratio -0.1"),
        ({"ratio": float("nan")}, "ratio nan"),
        ({"criterion": "magic"}, "criterion 'magic' does not exist. Choose one of"),
        ({"scope": "layer"}, "Choose one of global, local"),
        ({"residual": "cut"}, "Choose one of couple, select, keep"),
        ({"min_channels": 0}, "must be at least 1"),
        ({"ignore": ["features.0"]}, "no layer is called 'features.0'"),
    ],
)
def test_impossible_options_are_refused(graph: irtool.FxGraph, options: dict, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        irtool.plan(graph, **options)


def test_weights_that_are_not_finite_are_refused() -> None:
    net = vgg()
    net[3].weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(PlanError, match=r"3.weight: holds NaN or infinity. Load a sound checkpoint"):
        irtool.plan(irtool.trace(net, torch.zeros(1, 3, 8, 8)))


def test_a_plan_survives_json_and_is_replayed(graph: irtool.FxGraph, tmp_path: Path) -> None:
    plan = irtool.plan(graph, "bn_scale", 0.5, ignore=["3"])
    plan.to_json(tmp_path / "plan.json")
    again = irtool.Plan.from_json(tmp_path / "plan.json")
    x = torch.randn(2, 3, 8, 8)
    fresh = irtool.trace(vgg(), torch.zeros(1, 3, 8, 8))
    assert again == plan
    assert torch.equal(irtool.prune(graph, plan).run(x), irtool.prune(fresh, again).run(x))


def test_a_plan_is_carried_out_by_places_and_sizes(graph: irtool.FxGraph) -> None:
    """Decision 55: other weights and names do, other places and sizes do not, and layers that it leaves out keep their channels."""
    plan = replace(irtool.plan(graph, "bn_scale", 0.5), criterion="of-somebody-else")
    trained = vgg()
    trained[3].weight.data.normal_()
    fresh = irtool.trace(trained, torch.zeros(1, 3, 8, 8))
    renamed = replace(plan, layers=tuple(replace(layer, name=f"net.{layer.name}") for layer in plan.layers))
    left = [layer.kept for layer in plan.layers]
    assert [node.output.sizes[1] for node in irtool.prune(fresh, renamed).nodes if node.op == "Conv"] == left[:3]
    second = replace(plan, layers=plan.layers[1:2])
    assert [node.output.sizes[1] for node in irtool.prune(fresh, second).nodes if node.op == "Conv"] == [8, left[1], 16]
    moved = replace(plan, layers=(replace(plan.layers[0], parameter="9.weight"),))
    with pytest.raises(PlanError, match="0: the plan speaks of 8 channels, this model has no such layer"):
        irtool.prune(fresh, moved)
    with pytest.raises(PlanError, match="0: the plan speaks of 8 channels, this model has 4 channels"):
        irtool.prune(irtool.trace(vgg((4, 12, 16)), torch.zeros(1, 3, 8, 8)), plan)


@pytest.mark.parametrize(
    ("text", "error"), [("{", FileError), ("[1]", PlanError), ('{"format": 99}', PlanError), ('{"format": 1, "layers": 3}', PlanError)]
)
def test_what_is_no_plan_is_refused(tmp_path: Path, text: str, error: type[Exception]) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(error, match=r"Pass a file|Make the plan again"):
        irtool.Plan.from_json(tmp_path / "plan.json")


def test_a_plan_of_another_model_is_refused(graph: irtool.FxGraph) -> None:
    other = irtool.trace(vgg((8, 12, 20)), torch.zeros(1, 3, 8, 8))
    with pytest.raises(PlanError, match="6: the plan speaks of 16 channels, this model has 20 channels"):
        irtool.prune(other, irtool.plan(graph, "l1", 0.5))


def test_a_plan_that_removes_an_output_is_refused(graph: irtool.FxGraph) -> None:
    data = irtool.plan(graph, "l1", 0.5).to_dict()
    data["layers"][-1]["removed"] = [0]
    with pytest.raises(PlanError, match="must stay: is a graph output"):
        irtool.prune(graph, irtool.Plan.from_dict(json.loads(json.dumps(data))))


def test_a_user_criterion_is_a_function_in_the_registry(graph: irtool.FxGraph) -> None:
    @irtool.criterion("first_stays")
    def first_stays(groups: irtool.ChannelGroups, seed: int) -> np.ndarray:
        return -np.arange(groups.labels.count, dtype=float)

    plan = irtool.plan(graph, "first_stays", 0.5, "local")
    assert plan.layers[0].removed == (4, 5, 6, 7)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    ratio=st.floats(0, 0.99),
    seed=st.integers(0, 10_000),
    residual=st.sampled_from(["couple", "select", "keep"]),
    scope=st.sampled_from(["global", "local"]),
    round_to=st.sampled_from([1, 2, 8]),
    min_channels=st.integers(1, 9),
)
def test_no_plan_can_fail_in_prune(ratio: float, seed: int, residual: str, scope: str, round_to: int, min_channels: int) -> None:
    graph = irtool.trace(PreResNet(11, width=0.5), torch.zeros(1, 3, 8, 8))
    plan = irtool.plan(graph, "random", ratio, scope, residual, min_channels, round_to, seed=seed)
    smaller = irtool.prune(graph, plan, "drop")
    assert all(layer.kept >= min(min_channels, layer.total) for layer in plan.layers)
    assert smaller.run(torch.zeros(1, 3, 8, 8)).shape == (1, 10)


def test_every_pinned_layer_has_its_reason(graph: irtool.FxGraph) -> None:
    groups = irtool.channel_groups(graph)
    assert groups.explain("11") == "11: 5 channels in 5 groups; 5 must stay: is a graph output (at output)"
    assert groups.explain("0") == "0: 8 channels in 8 groups"
    drawn = groups.to_networkx()
    assert ("layer", "0") in drawn
    assert drawn.nodes["layer", "0"]["channels"] == 8


@pytest.mark.parametrize(
    ("net", "options", "reason"),
    [
        (nn.Sequential(nn.Conv2d(3, 16, 3), nn.ConvTranspose2d(16, 32, 4, groups=16), nn.Conv2d(32, 4, 1)), {"round_to": 1}, "all parts equally wide (at 1)"),
        (nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1)), {"min_channels": 16}, "nothing can go that leaves min_channels=16"),
    ],
    ids=["balanced", "limited"],
)  # fmt: skip
def test_a_layer_that_conditions_keep_whole_says_so(net: nn.Module, options: dict[str, int], reason: str) -> None:
    plan = irtool.plan(irtool.trace(net.eval(), torch.zeros(1, 3, 8, 8)), "l1", 0.5, "local", **options)
    assert not plan.layers[0].removed
    assert reason in plan.layers[0].reason


def test_bn_scale_says_when_scales_do_not_separate() -> None:
    torch.manual_seed(0)
    net = irtool.models.VGG(11, width=0.25)
    norms = [part for part in net.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 1)
    graph = irtool.trace(net.eval(), torch.zeros(1, 3, 32, 32))
    plan = irtool.plan(graph, "bn_scale", 0.4)
    assert "not trained to separate" in plan.notes[0]
    assert plan.notes[0] in plan.summary()
    assert irtool.Plan.from_dict(plan.to_dict()) == plan
    with torch.no_grad():
        for norm in norms:
            norm.weight[: len(norm.weight) // 2] *= 1e-4
    assert not irtool.plan(irtool.trace(net.eval(), torch.zeros(1, 3, 32, 32)), "bn_scale", 0.4).notes
