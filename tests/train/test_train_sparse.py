"""Sparse training: the penalty, its strength, and the search for one."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from training import QUICK, net, same

from irtool.errors import OptionError, TrainError
from irtool.train import Data, Settings, evaluate, find_strength, fit, load_data, small_scales, sparse
from irtool.train.sparse import strength_of


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits", image_size=12, limit=320)


def test_sparse_training_brings_scales_to_zero(digits: Data) -> None:
    free, shrunk = net(), net()
    fit(free, digits, QUICK, epochs=6, lr=0.1)
    history = sparse(shrunk, digits, QUICK, epochs=6, lr=0.1, strength=0.1)
    assert small_scales(free) == 0
    assert small_scales(shrunk) > 0.3
    assert history.last.extra == {"strength": 0.1, "small_scales": small_scales(shrunk)}
    assert history.facts["stage"] == "sparse"
    assert evaluate(shrunk, digits).accuracy > 0.8


def test_the_penalty_is_the_subgradient_of_l1(digits: Data) -> None:
    """One step of plain SGD: the scales differ by lr * strength * sign(gamma) from those without a penalty, others not at all."""
    one = Settings(epochs=1, lr=0.1, batch_size=320, momentum=0.0, weight_decay=0.0, schedule="constant")
    free, shrunk = net(), net()
    for model in (free, shrunk):
        nn.init.uniform_(model[1].weight, -1, 1, generator=torch.Generator().manual_seed(0))
    signs = free[1].weight.detach().sign()
    fit(free, digits, one)
    sparse(shrunk, digits, one, strength=lambda position: 0.02 * position, ignore=("5",))
    torch.testing.assert_close(free[1].weight - shrunk[1].weight, 0.1 * 0.01 * signs, rtol=0, atol=1e-6)
    assert torch.equal(free[5].weight, shrunk[5].weight)
    assert torch.equal(free[0].weight, shrunk[0].weight)


def test_strengths() -> None:
    assert strength_of("1e-4") == 1e-4
    ramp = strength_of("0:1e-3")
    assert callable(ramp)
    assert (ramp(0), ramp(0.5), ramp(1)) == (0, 5e-4, 1e-3)
    for bad in ("much", "-1", "1:2:3", 5):
        with pytest.raises(OptionError, match=r"Give a number from 0 to below 1 \(1e-4 to 1e-3 are usual\)"):
            strength_of(bad)
    with pytest.raises(TrainError, match=r"no batch norm with a trainable scale.*Train before folding"):
        small_scales(nn.Linear(3, 3))


def test_auto_strength_rises_with_the_wanted_share_and_stops_at_the_bound(digits: Data) -> None:
    settings = Settings(epochs=60, lr=0.1, batch_size=32)
    model = net()
    before = copy.deepcopy(model.state_dict())
    few = find_strength(model, digits, settings, share=0.1, steps=10, bound=0.5)
    many = find_strength(model, digits, settings, share=0.9, steps=10, bound=10.0)
    held = find_strength(model, digits, settings, share=0.9, steps=10, bound=1e-9)
    assert held <= few < many
    assert same(model.state_dict(), before)
    for change in ({"share": 1.5}, {"share": "half"}, {"bound": math.nan}, {"steps": 0}, {"candidates": (1e-3, "a")}):
        with pytest.raises(OptionError, match="Give 0 < share < 1, bound > 0, a whole number of steps"):
            find_strength(model, digits, settings, **change)


def test_a_batch_norm_that_does_not_run_cannot_be_penalised(digits: Data) -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(144, 10), nn.BatchNorm2d(1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x.flatten(1))

    for strength in (1e-3, "auto"):
        with pytest.raises(TrainError, match=r"no batch norm with a trainable scale takes part.*Call the batch norms in forward"):
            sparse(Idle(), digits, QUICK, strength=strength)


def test_auto_strength_is_not_searched_again_on_resuming(digits: Data, tmp_path: Path) -> None:
    a = sparse(net(), digits, QUICK, strength="auto", out=tmp_path)
    assert isinstance(a.facts["strength"], float)
    b = sparse(net(seed=7), digits, QUICK, strength="auto", out=tmp_path, resume=True)
    assert a == b
