"""Whole groups of grouped convolutions: what is left keeps its width, and the same numbers come out."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from macs_clock import MacsClock
from random_norms import randomise
from torch import Tensor, nn

import irtool
from irtool.errors import PlanError, ProofError
from irtool.pruning.allocation import latency
from irtool.pruning.slicing.check import check_prune, check_refitted


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))


class Block(nn.Module):
    """1x1, grouped 3x3 with a gate, 1x1, and a shortcut."""

    def __init__(self, groups: int, narrow: int, wide: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.a, self.an = nn.Conv2d(12, groups * narrow, 1), nn.BatchNorm2d(groups * narrow)
        self.b, self.bn = nn.Conv2d(groups * narrow, groups * wide, 3, padding=1, groups=groups), nn.BatchNorm2d(groups * wide)
        self.gate, self.c = Gate(groups * wide), nn.Conv2d(groups * wide, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = torch.relu(self.bn(self.b(torch.relu(self.an(self.a(x))))))
        return self.head((x + self.c(self.gate(y))).mean((2, 3)))


class Odd(nn.Module):
    """A functional convolution in one dimension, one that is called twice, and a transposed one, all in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(2, 12, 3)
        self.weight = nn.Parameter(torch.randn(24, 3, 3))
        self.twice = nn.Conv1d(24, 24, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose1d(24, 8, 2, stride=2, groups=4, bias=False)
        self.last = nn.Conv1d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(F.conv1d(torch.relu(self.first(x)), self.weight, None, 1, 1, 1, 4))
        return self.last(torch.tanh(self.up(torch.relu(self.twice(torch.relu(self.twice(x)))))))


def traced(model: nn.Module, *shape: int) -> irtool.FxGraph:
    randomise(model)
    return irtool.trace(model.eval(), torch.zeros(shape))


def grouped(graph: irtool.FxGraph) -> list[tuple[int, int, int]]:
    """Groups, and the channels that each reads and makes, of every convolution in groups."""
    found = []
    for node in graph.nodes:
        weight = node.get("weight")
        if node.op in ("Conv", "ConvTranspose") and (groups := node.attrs.get("group", 1)) > 1 and weight is not None:
            found.append((groups, node.input.sizes[1] // groups, node.output.sizes[1] // groups))
    return found


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 6), st.integers(2, 5), st.integers(2, 5), st.integers(0, 3), st.floats(0.1, 0.8))
def test_groups_that_stay_keep_their_width(groups: int, narrow: int, wide: int, seed: int, ratio: float) -> None:
    torch.manual_seed(seed)
    graph = traced(Block(groups, narrow, wide), 2, 3, 6, 6)
    plan = irtool.plan(graph, "random", ratio, groups="whole", round_to=1, seed=seed)
    pruned = irtool.prune(graph, plan)
    assert check_prune(graph, irtool.Plan.from_dict(plan.to_dict()), constants="absorb").ok
    removed = {layer.name: layer.removed for layer in plan.layers}
    lost = {place // wide for place in removed["b"]}
    assert removed["b"] == tuple(place for place in range(groups * wide) if place // wide in lost)
    assert removed["a"] == tuple(place for place in range(groups * narrow) if place // narrow in lost)
    conv = pruned.module.get_submodule("b")
    assert (conv.groups, conv.in_channels, conv.out_channels) == tuple((groups - len(lost)) * n for n in (1, narrow, wide))
    again = irtool.trace(pruned.module, torch.zeros(2, 3, 6, 6))
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(again.run(x), pruned.run(x))


def test_every_kind_of_convolution() -> None:
    torch.manual_seed(0)
    graph = traced(Odd(), 2, 2, 9)
    plan = irtool.plan(graph, "l2", 0.5, groups="whole", round_to=1)
    pruned = irtool.prune(graph, plan)
    assert check_prune(graph, plan).ok
    assert grouped(graph) == [(4, 3, 6), (4, 6, 6), (4, 6, 6), (4, 6, 2)]
    counts = {groups for groups, *_ in grouped(pruned)}
    assert len(counts) == 1
    assert counts < {1, 2, 3}
    assert [widths for _, *widths in grouped(pruned)] == [[3, 6], [6, 6], [6, 6], [6, 2]]


def test_one_group_may_be_left() -> None:
    torch.manual_seed(0)
    graph = traced(Block(2, 4, 4), 2, 3, 6, 6)
    plan = irtool.plan(graph, "l2", 0.6, scope="local", groups="whole", round_to=1)
    assert grouped(irtool.prune(graph, plan)) == []
    assert irtool.prune(graph, plan).module.get_submodule("b").groups == 1
    assert check_prune(graph, plan).ok


def test_whole_groups_then_channels_of_each() -> None:
    """Two plans one after the other are one plan, as stages make them."""
    torch.manual_seed(0)
    graph = traced(Block(6, 6, 4), 2, 3, 6, 6)
    plan = irtool.plan(graph, "l2", 0.4, scope="local", groups="whole", round_to=1)
    removed = {layer.name: set(layer.removed) for layer in plan.layers}
    stay = sorted(set(range(6)) - {place // 4 for place in removed["b"]})
    removed["b"] |= {4 * group + group % 4 for group in stay}
    removed["a"] |= {6 * group + place for group in stay for place in (group % 6, (group + 2) % 6)}
    removed["gate.up"] = removed["b"]
    data = plan.to_dict()
    data["layers"] = [{**layer, "removed": sorted(removed.get(layer["name"], layer["removed"]))} for layer in data["layers"]]
    joined = irtool.Plan.from_dict(data)
    assert grouped(irtool.prune(graph, joined)) == [(len(stay), 4, 3)]
    assert check_prune(graph, joined).ok


def test_a_plan_that_takes_the_inputs_of_a_group_alone_is_refused() -> None:
    torch.manual_seed(0)
    graph = traced(Block(4, 4, 4), 2, 3, 6, 6)
    data = irtool.plan(graph, "l2", 0.0).to_dict()
    data["layers"] = [{**layer, "removed": [0, 1, 2, 3] if layer["name"] == "a" else []} for layer in data["layers"]]
    with pytest.raises(ProofError, match="which must lose equally many"):
        irtool.prune(graph, irtool.Plan.from_dict(data))


@pytest.mark.parametrize("name", ["regnet_y_400mf", "resnext50_32x4d"])
@pytest.mark.parametrize("budget", [{"macs": 0.5}, {"params": 0.6, "macs": 0.7}])
def test_budgets_are_kept_by_whole_groups(name: str, budget: dict[str, float]) -> None:
    torch.manual_seed(0)
    graph = irtool.trace(torchvision.models.get_model(name, weights=None).eval(), torch.zeros(1, 3, 64, 64))
    plan = irtool.plan(graph, "l2", budget=budget, groups="whole", round_to=1)
    pruned = irtool.prune(graph, plan)
    before, after = irtool.cost(graph), irtool.cost(pruned)
    used = [getattr(after, kind) / (share * getattr(before, kind)) for kind, share in budget.items()]
    assert 0.97 <= max(used) <= 1
    assert [widths for _, *widths in grouped(pruned)] == [widths for _, *widths in grouped(graph)]
    assert irtool.Plan.from_dict(plan.to_dict()).groups == "whole"


def test_narrow_groups_go_whole_with_a_budget_and_the_default_rounding() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 128, 1), nn.Conv2d(128, 128, 3, groups=8), nn.Conv2d(128, 128, 1), nn.Conv2d(128, 128, 3, groups=2)]
    graph = traced(nn.Sequential(*layers, nn.Conv2d(128, 4, 1)), 1, 3, 8, 8)
    narrow, wide = grouped(irtool.prune(graph, irtool.plan(graph, "random", budget={"macs": 0.4})))
    assert narrow == (narrow[0], 16, 16)
    assert narrow[0] < 8
    assert wide[0] == 2
    assert wide[1] < 64
    for options in ({"groups": "even"}, {"round_to": 1}):
        found = grouped(irtool.prune(graph, irtool.plan(graph, "random", budget={"macs": 0.4}, **options)))  # type: ignore[arg-type]
        assert [groups for groups, *_ in found] == [8, 2]
    assert {groups for groups, *_ in grouped(irtool.prune(graph, irtool.plan(graph, "random", 0.4)))} == {8, 2}


def _coarse(groups: int, width: int) -> irtool.FxGraph:
    """Two convolutions whose whole groups are large steps."""
    torch.manual_seed(0)
    inside = groups * width
    middle = [nn.Conv2d(inside, inside, 3, padding=1, groups=groups), nn.ReLU(), nn.Conv2d(inside, inside, 3, padding=1, groups=groups)]
    return traced(nn.Sequential(nn.Conv2d(3, inside, 3), nn.ReLU(), *middle, nn.Conv2d(inside, 4, 1)), 2, 3, 10, 10)


@pytest.mark.parametrize(("groups", "width"), [(4, 12), (8, 12), (5, 20)])
@pytest.mark.parametrize("share", [0.7, 0.3, 0.12])
def test_where_whole_groups_are_too_coarse_for_a_budget_channels_of_each_go(groups: int, width: int, share: float) -> None:
    graph = _coarse(groups, width)
    plan = irtool.plan(graph, "l2", budget={"macs": share})
    pruned = irtool.prune(graph, plan)
    assert check_prune(graph, plan).ok
    assert 0.97 <= irtool.cost(pruned).macs / (share * irtool.cost(graph).macs) <= 1


def test_what_whole_groups_leave_of_a_budget_is_told_and_so_is_what_they_cannot_reach() -> None:
    graph = _coarse(4, 12)
    plan = irtool.plan(graph, "l2", budget={"macs": 0.7}, groups="whole")
    used = irtool.cost(irtool.prune(graph, plan)).macs / (0.7 * irtool.cost(graph).macs)
    assert f"{used:.0%} of the budget is used: the smallest next step, in whole groups of channels, is larger than the rest" in plan.notes
    with pytest.raises(PlanError, match="or loosen groups"):
        irtool.plan(graph, "l2", budget={"macs": 0.12}, groups="whole")


def test_of_several_families_only_those_that_are_too_coarse_lose_channels_of_each() -> None:
    torch.manual_seed(0)
    fine, coarse = nn.Conv2d(64, 64, 3, padding=1, groups=16), nn.Conv2d(96, 96, 3, padding=1, groups=4)
    layers = [nn.Conv2d(3, 64, 1), nn.ReLU(), fine, nn.ReLU(), nn.Conv2d(64, 96, 1), nn.ReLU(), coarse, nn.ReLU(), nn.Conv2d(96, 4, 1)]
    graph = traced(nn.Sequential(*layers), 2, 3, 8, 8)
    plan = irtool.plan(graph, "l2", budget={"macs": 0.16})
    pruned = irtool.prune(graph, plan)
    assert check_prune(graph, plan).ok
    assert 0.97 <= irtool.cost(pruned).macs / (0.16 * irtool.cost(graph).macs) <= 1
    first, second = grouped(pruned)
    assert first == (first[0], 4, 4)
    assert first[0] < 16
    assert second[0] == 4
    assert second[1] < 24


def test_what_a_shuffle_interleaves_stays_even() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1, groups=4), nn.ChannelShuffle(4), nn.Conv2d(16, 16, 1, groups=4)]
    graph = traced(nn.Sequential(*layers, nn.Conv2d(16, 4, 1)), 2, 3, 4, 4)
    plan = irtool.plan(graph, "l2", 0.5, groups="whole", round_to=1)
    assert check_prune(graph, plan).ok
    assert [groups for groups, *_ in grouped(irtool.prune(graph, plan))] == [4, 4]


def test_the_class_itself_refitting_and_stages() -> None:
    torch.manual_seed(0)
    model, x = randomise(Block(6, 4, 4)).eval(), torch.randn(32, 3, 6, 6)
    graph = irtool.trace(model, x[:2])
    plan = irtool.plan(graph, budget={"macs": 0.5}, data=x, stages=2, groups="whole", round_to=1)
    (left,) = grouped(irtool.prune(graph, plan))
    assert left == (left[0], 4, 4)
    refitted = irtool.reconstruct(graph, plan, x)
    assert check_refitted(graph, plan, refitted, (x[:4],)).ok
    expected = irtool.prune(graph, plan, constants="drop").run(x)
    irtool.apply(plan, model, x[:2], "drop")
    torch.testing.assert_close(model(x), expected)
    assert model.b.groups == left[0]  # type: ignore[attr-defined]


def test_onnx_graphs_and_archives(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = traced(Block(6, 4, 4), 2, 3, 6, 6), torch.randn(2, 3, 6, 6)
    irtool.export_onnx(model, tmp_path / "m.onnx")
    graph = irtool.load_onnx(tmp_path / "m.onnx")
    plan = irtool.plan(graph, "l2", 0.5, scope="local", groups="whole", round_to=1)
    pruned = irtool.prune(graph, plan)
    assert grouped(pruned) == [(3, 4, 4)]
    assert check_prune(graph, plan).ok
    small = irtool.prune(model, irtool.plan(model, "l2", 0.5, scope="local", groups="whole", round_to=1))
    irtool.save(small, tmp_path / "small.irtool")
    torch.testing.assert_close(irtool.load(tmp_path / "small.irtool").run(x), small.run(x))


def test_an_unknown_kind_is_refused() -> None:
    graph = traced(Block(4, 4, 4), 2, 3, 6, 6)
    with pytest.raises(PlanError, match="Choose one of auto, whole, even"):
        irtool.plan(graph, groups="half")  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="Choose one of auto, whole, even"):
        irtool.Plan.from_dict({**irtool.plan(graph, "l2").to_dict(), "groups": "half"})


@pytest.mark.parametrize("liked", ["whole", "even"])
def test_a_latency_budget_takes_the_kind_that_loses_less_by_the_table(liked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table says that narrower groups take as long as before, or that fewer do."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 3, padding=1, groups=8), nn.ReLU(), nn.Conv2d(64, 64, 1), nn.Conv2d(64, 4, 1)]
    graph = traced(nn.Sequential(*layers), 1, 3, 8, 8)

    def terms(graph: irtool.Graph, watch: object, whole: Collection[str] = ()) -> list[tuple[float, list[tuple[object, int]]]]:
        ends = [(node.output, 1) for node in graph.nodes if node.op == "Conv"]
        fits = bool(whole) == (liked == "whole")
        return [(1.0 if number != 1 or fits else 0.0, [end]) for number, end in enumerate(ends)] + [(64.0 * (1 - fits), [])]

    monkeypatch.setattr(latency, "GraphClock", MacsClock)
    monkeypatch.setattr(latency, "layer_terms", terms)
    plan = irtool.plan(graph, "l2", budget={"latency": 0.6}, engine="mnn")
    (found,) = grouped(irtool.prune(graph, plan))
    assert (found[0] < 8) == (liked == "whole")
    assert (found[1] < 8) == (liked == "even")
    assert plan.groups == "auto"
