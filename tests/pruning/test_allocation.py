"""Balanced families: the closed form for plain groups against the integer program for all."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import irtool
from irtool.channels.balance import Balance, balance_of
from irtool.pruning.allocation.allocation import Limits, _nearest, _nearest_alike, _Rows, _Sets

NONE = _Rows(np.zeros((0, 1), np.int64), *[np.zeros(0, np.int64)] * 3)
"""No layer that the family touches."""


def grouped(groups: int, width: int) -> Balance:
    """The family of a grouped convolution's input: a row a group, every channel a group of its own."""
    table = np.arange(groups * width).reshape(groups, width)
    found = balance_of([table], [table], [table], [False])
    assert found is not None
    return found


@pytest.mark.parametrize("seed", range(12))
def test_both_ways_are_equally_near(seed: int) -> None:
    draw = np.random.default_rng(seed)
    groups, width = int(draw.integers(2, 9)), int(draw.integers(2, 12))
    balance = grouped(groups, width)
    assert balance.alike
    target = draw.integers(0, width + 1, groups)
    total, least = groups * width, int(draw.integers(1, groups * width // 2 + 1))
    for rounding in (1, 2, groups):
        layers = _Rows(np.ones((1, groups), np.int64), np.array([total]), np.array([total - least]), np.array([rounding]))
        closed, program = (solve(balance, target, layers) for solve in (_nearest_alike, _nearest))
        assert (closed is None) == (program is None)
        if closed is not None and program is not None:
            assert np.abs(closed - target).sum() == np.abs(program - target).sum()
            assert len(set(closed.tolist())) == 1
            assert total - closed.sum() >= least
            assert (total - closed.sum()) % rounding == 0


def test_of_equally_near_numbers_the_one_nearest_to_the_ratio_wins() -> None:
    balance = grouped(4, 16)
    taken = _nearest_alike(balance, np.array([4, 6, 10, 12]), NONE)
    assert taken is not None
    assert taken.tolist() == [8, 8, 8, 8]


def test_a_shuffle_between_two_groupings_is_left_to_the_program() -> None:
    table = np.arange(12).reshape(2, 6)
    shuffled = table.T.reshape(3, 4)
    found = balance_of([table, shuffled], [table, shuffled], [table, shuffled], [True, False])
    assert found is not None
    assert not found.alike
    taken = _nearest(found, np.array([len(cell) // 2 for cell in found.cells]), NONE)
    assert taken is not None
    assert not (found.equal @ taken).any()


def test_what_layers_lose_for_one_group_of_each_cell() -> None:
    """Against a look at every layer and every group, with layers that lie outside, and groups that several layers have, or one twice."""
    draw = np.random.default_rng(3)
    groups = SimpleNamespace(group=draw.integers(0, 40, 300))
    sets = [draw.integers(0, 300, draw.integers(1, 60)) for _ in range(9)]
    layers = _Sets(groups, sets, Limits())  # type: ignore[arg-type]
    cells = [np.array([3, 8, 1]), np.array([20, 9]), np.array([31])]
    touched, loss = layers.losses(cells)
    most = np.array([[max((groups.group[own] == group).sum() for group in cell) for cell in cells] for own in sets])
    assert touched.tolist() == np.flatnonzero(most.any(1)).tolist()
    assert loss.tolist() == most[touched].tolist()


@pytest.mark.parametrize(("ratio", "round_to", "kept"), [(0.1, 8, 32), (0.4, 8, 24), (0.5, 32, 32)])
def test_rounding_holds_around_grouped_convolutions(ratio: float, round_to: int, kept: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3, groups=4), nn.ReLU(), nn.Conv2d(32, 8, 1)).eval()
    made = irtool.plan(irtool.trace(model, torch.zeros(1, 3, 9, 9)), "l1", ratio, "local", round_to=round_to)
    assert made.layers[0].kept == kept
    assert made.layers[1].kept % round_to == 0
    assert ("round_to" in made.layers[0].reason) == (kept == 32)


def test_scales_that_are_all_alike_go_by_number_not_by_score() -> None:
    model = nn.Sequential(nn.Conv2d(3, 20, 3), nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 20, 3), nn.BatchNorm2d(20), nn.Conv2d(20, 4, 1))
    made = irtool.plan(irtool.trace(model.eval(), torch.zeros(1, 3, 9, 9)), "bn_scale", 0.2)
    assert made.removed == 9  # the published rule: the one at the threshold goes, too
