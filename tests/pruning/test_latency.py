"""Latency as a budget. Times are made up where a test depends on them: no test may depend on how fast the machine is."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from macs_clock import MostlyMacsClock
from torch import nn

import irtool
from irtool.errors import OptionError, PlanError
from irtool.pruning.allocation import latency
from irtool.pruning.allocation.budgeted import SlowError
from irtool.pruning.allocation.latency import TOLERANCE, Attempt, search

UNUSED: Any = None
"""A plan, which the search does not look at."""


def machine(fixed: float, bend: float = 0.0, floor: float = 0.0) -> Any:
    """Attempts on a machine where `fixed` of the time stays whatever the table says, and the rest is bent."""

    def attempt(aim: float) -> Attempt:
        if aim < floor:
            raise SlowError(floor)
        return Attempt(UNUSED, aim, fixed + (1 - fixed) * (aim + bend * aim * (1 - aim)))

    return attempt


def same(made: Attempt) -> float:
    """Measured anew without noise."""
    return made.measured


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_what_is_measured_with_noise_is_within_the_tolerance_without(share: float) -> None:
    """Times of one net differ by some hundredths from session to session; the choice must not go to what noise made look best."""
    draw, clean = random.Random(0), machine(0.15, 0.3)

    def noisy(made: Attempt) -> float:
        return float(made.measured * draw.gauss(1, 0.015))

    for _ in range(300):
        found = search(
            share,
            lambda aim: replace(clean(aim), measured=noisy(clean(aim))),
            lambda made: noisy(clean(made.table)),
            lambda done: None,
            "mnn",
        )
        assert 0.92 * share <= clean(found.table).measured <= (1 + TOLERANCE) * share


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
@pytest.mark.parametrize(("fixed", "bend"), [(0.0, 0.0), (0.2, 0.0), (0.1, 0.6), (0.0, -0.6), (0.25, -0.3)])
def test_the_aim_is_corrected_until_the_measured_time_holds(share: float, fixed: float, bend: float) -> None:
    found = search(share, machine(fixed, bend), same, lambda done: None, "onnxruntime")
    assert share * (1 - TOLERANCE) <= found.measured <= share * (1 + TOLERANCE)


@pytest.mark.parametrize(("fixed", "floor"), [(0.6, 0.0), (0.0, 0.7), (0.3, 0.4)])
def test_the_least_that_can_be_reached_is_told(fixed: float, floor: float) -> None:
    least = fixed + (1 - fixed) * floor
    with pytest.raises(PlanError, match="cannot come down to 50 % in mnn: the least reachable is") as caught:
        search(0.5, machine(fixed, floor=floor), same, lambda done: None, "mnn")
    told = float(str(caught.value).split("least reachable is ")[1].split(" %")[0])
    assert 100 * least - 0.1 <= told <= 100 * least + 6


def test_what_the_table_cannot_reach_may_still_be_fast_enough() -> None:
    """The table is a guess: the measured net counts."""
    found = search(0.5, lambda aim: machine(0.0, bend=-0.5, floor=0.55)(aim), same, lambda done: None, "mnn")
    assert found.measured <= 0.5 * (1 + TOLERANCE)


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> irtool.FxGraph:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(latency, "GraphClock", MostlyMacsClock)
    torch.manual_seed(0)
    widths = (3, 64, 96, 128, 8)
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())]
    return irtool.trace(nn.Sequential(*layers).eval(), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("wish", [0.5, 4.0])
def test_a_plan_is_measured_as_asked_and_says_so(graph: irtool.FxGraph, wish: float) -> None:
    seen: list[str] = []
    plan = irtool.plan(graph, "l2", budget={"latency": wish}, engine="onnxruntime", progress=lambda status: seen.append(status.task))
    took = 0.1 + 0.9 * irtool.cost(irtool.prune(graph, plan)).macs / irtool.cost(graph).macs
    assert 0.4 <= took <= 0.5 * (1 + TOLERANCE)
    assert f"{100 * took:.1f} % of the original's in onnxruntime" in plan.notes[-1]
    assert irtool.Plan.from_dict(plan.to_dict()) == plan
    assert {"time layers in onnxruntime", "plan and measure in onnxruntime"} <= set(seen)
    assert list((Path(irtool.__file__).parent).glob("layer-times")) == []


def test_other_budgets_hold_beside_it(graph: irtool.FxGraph) -> None:
    plan = irtool.plan(graph, "l2", budget={"latency": 0.7, "params": 0.3}, engine="onnxruntime")
    assert irtool.cost(irtool.prune(graph, plan)).params <= 0.3 * irtool.cost(graph).params


@pytest.mark.parametrize(
    ("options", "error", "remedy"),
    [
        ({"budget": {"latency": 0.5}}, PlanError, "Give one of onnxruntime, mnn"),
        ({"budget": {"macs": 0.5}, "engine": "mnn"}, PlanError, "Ask for latency"),
        ({"budget": {"latency": 0.5}, "engine": "tensorrt"}, OptionError, "Choose onnxruntime or mnn"),
        ({"budget": {"latency": 0.5}, "engine": "mnn", "threads": 0}, PlanError, "Give 1 or more"),
        ({"budget": {"latency": 9.0}, "engine": "mnn"}, PlanError, "a share of at most 1"),
        ({"budget": {"latency": 0.05}, "engine": "onnxruntime"}, PlanError, "least reachable"),
        ({"budget": {"latency": 0.5}, "engine": "onnxruntime", "ignore": ["0", "3", "6"]}, PlanError, "least reachable"),
    ],
)
def test_impossible_wishes(graph: irtool.FxGraph, options: dict[str, Any], error: type[Exception], remedy: str) -> None:
    with pytest.raises(error, match=remedy):
        irtool.plan(graph, "l2", **options)
