"""Allocation by measured losses: the program against all choices, budgets kept, and what is refused."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from random_norms import randomise
from torch import nn

import irtool
from irtool.analysis.width_cost import width_cost
from irtool.channels.groups import channel_groups
from irtool.errors import DataError, PlanError
from irtool.pruning.allocation.allocation import Limits
from irtool.pruning.allocation.measured import _Program, allocate_measured
from irtool.pruning.allocation.sensitivity import Curve, sensitivity
from irtool.pruning.allocation.stacks import room_of, stacks_of


def net() -> irtool.FxGraph:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()]
    layers += [nn.Conv2d(12, 12, 3, padding=1, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)]
    return irtool.trace(randomise(nn.Sequential(*layers)).eval(), torch.zeros(2, 3, 6, 6))


def test_the_program_finds_the_best_of_all_choices() -> None:
    groups = channel_groups(net())
    costs, draw = width_cost(groups), np.random.default_rng(0)
    room = room_of(groups, costs, Limits(1), {})
    stacks = stacks_of(groups, draw.random(groups.count), room)
    curves = [Curve(counts := np.arange(len(stack.units)), np.sort(draw.random(counts.size)) - 0.0) for stack in stacks]
    curves = [Curve(curve.units, np.concatenate([[0.0], curve.loss[1:]])) for curve in curves]
    whole = costs.total(np.array([1.0, *map(len, costs.sets[1:])]))
    targets = {"macs": 0.45 * whole["macs"], "params": 0.6 * whole["params"]}
    program = _Program(stacks, room, costs, targets, curves)

    def left(counts: tuple[int, ...]) -> dict[str, float]:
        level = room.level.copy()
        for stack, count in zip(stacks, counts, strict=True):
            level[stack.touched] -= stack.drop[:count].sum(0)
        return costs.total(level[: len(costs.sets)])

    fitting = [
        counts
        for counts in itertools.product(*(curve.units.tolist() for curve in curves))
        if all(left(counts)[kind] <= most for kind, most in targets.items())
    ]
    least = min(sum(curve.loss[count] for curve, count in zip(curves, counts, strict=True)) for counts in fitting)
    found = tuple(program.solved())
    assert found in fitting
    assert sum(curve.loss[count] for curve, count in zip(curves, found, strict=True)) == pytest.approx(least, rel=2e-3)
    outcome = allocate_measured(stacks, room, costs, targets, curves)
    assert outcome.reached
    assert all(outcome.cost[kind] <= most for kind, most in targets.items())


def test_what_is_measured_is_what_the_pruned_net_loses() -> None:
    graph, x = net(), torch.randn(32, 3, 6, 6)
    groups = channel_groups(graph)
    room = room_of(groups, width_cost(groups), Limits(1), {})
    stacks = stacks_of(groups, np.ones(groups.count), room)
    curves = sensitivity(groups, stacks, room, [(x,)])
    assert len(curves) == len(stacks)
    for curve in curves:
        assert curve.units[0] == curve.loss[0] == 0
        assert (np.diff(curve.loss) >= 0).all()
        assert curve.loss[-1] > 0
        assert len(curve.units) > 3


@pytest.mark.parametrize("budget", [{"macs": 0.5}, {"params": 0.6, "macs": 0.7}])
@pytest.mark.parametrize("criterion", ["fisher", "l2"])
def test_budgets_are_kept(budget: dict[str, float], criterion: str) -> None:
    graph, x = net(), torch.randn(32, 3, 6, 6)
    plan = irtool.plan(graph, criterion, budget=budget, data=x, round_to=1, allocator="measured")
    before, after = irtool.cost(graph), irtool.cost(irtool.prune(graph, plan))
    used = [getattr(after, kind) / (share * getattr(before, kind)) for kind, share in budget.items()]
    assert 0.95 <= max(used) <= 1
    assert irtool.Plan.from_dict(plan.to_dict()).allocator == "measured"


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("onnx", [False, True], ids=["torch", "onnx"])
def test_finer_steps_use_what_those_that_engines_like_leave(share: float, onnx: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3),
        nn.ReLU(),
        nn.Conv2d(24, 8, 3),
        nn.Flatten(),
        nn.Linear(512, 4),
    ]
    x = torch.randn(32, 3, 12, 12)
    graph: irtool.Graph = irtool.trace(nn.Sequential(*layers).eval(), x[:2])
    if onnx:
        irtool.export_onnx(graph, tmp_path / "net.onnx")
        graph = irtool.load_onnx(tmp_path / "net.onnx")
    plan = irtool.plan(graph, budget={"macs": share}, data=x, allocator="measured")
    assert 0.97 <= irtool.cost(irtool.prune(graph, plan)).macs / (share * irtool.cost(graph).macs) <= 1


def test_what_cannot_be_measured() -> None:
    graph = net()
    with pytest.raises(DataError, match="Give data=images"):
        irtool.plan(graph, "l2", budget={"macs": 0.5}, allocator="measured")
    with pytest.raises(PlanError, match="Give a budget"):
        irtool.plan(graph, "l2", data=torch.randn(4, 3, 6, 6), allocator="measured")
    with pytest.raises(PlanError, match="Choose one of greedy, measured"):
        irtool.plan(graph, "l2", allocator="best")  # type: ignore[arg-type]
