"""Stages of a compression are kept only if images that were held back say that they gained."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import irtool
from irtool.pruning.reconstruct.distance import Aims
from irtool.train import load_data
from irtool.workflows.compress.gains import STAGES, better, distilled_on, stages_of
from irtool.workflows.compress.search import Bound
from irtool.workflows.compress.settings import Settings
from irtool.workflows.compress.smaller import _apart

MACS = {"budget": {"macs": 0.5}}


def scaled(factor: float) -> irtool.FxGraph:
    """A linear net whose outputs are so many times those of the first."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight.mul_(factor)
    return irtool.trace(nn.Sequential(layer).eval(), torch.zeros(1, 4))


@pytest.mark.parametrize(("before", "after", "kept"), [(2.0, 1.1, 1.1), (1.1, 2.0, 1.1), (1.2, 1.2, 1.2), (1.3, math.nan, 1.3)])
def test_the_nearer_to_the_original_is_kept_and_told(before: float, after: float, kept: float) -> None:
    held = Aims.of(scaled(1.0), [(torch.randn(8, 4, generator=torch.Generator().manual_seed(1)),)] * 2)
    assert held.count == 16
    found = better(held, "a second stage", before, after, scaled)
    assert found.result == kept
    gained = after < before
    assert found.note.startswith("a second stage kept: " if gained else "a second stage given up, it gained nothing: ")
    assert "16 images held back" in found.note


def test_stages_and_distilling_are_tried_unasked_where_they_take_little() -> None:
    small, large = (irtool.trace(nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3)).eval(), torch.zeros(1, 3, size, size))
                    for width, size in ((8, 16), (64, 256)))  # fmt: skip
    asked = Settings(plan=MACS, reconstruct=128, distil=None)
    assert stages_of(small, asked, 512) == STAGES
    assert stages_of(large, asked, 512) == 1
    assert distilled_on(small, asked, 8192) == (1, 8192)
    assert distilled_on(large, asked, 8192) == (0, 0)
    assert stages_of(small, asked, 0) == 1
    assert stages_of(small, Settings(plan={**MACS, "stages": 3}), 512) == 3
    assert stages_of(small, Settings(plan={"ratio": 0.5}), 512) == 1
    bound = Settings(plan=MACS, reconstruct=128, distil=None, bound=Bound(0.01))
    assert (stages_of(small, bound, 512), distilled_on(small, bound, 8192)) == (1, (0, 0))
    assert distilled_on(large, Settings(plan=MACS, distil=3), 100) == (3, 100)


def test_images_that_tell_are_none_that_are_fitted_on() -> None:
    data = load_data("digits", channels=3, limit=100)
    measured, rest = _apart(data)
    assert len(measured) == len(data.train) // 5
    assert len(measured) + len(rest.train) == len(data.train)
    fitted = rest.sample(len(data.train)).flatten(1)
    same = (measured.flatten(1)[:, None] - fitted[None]).abs().amax(2) == 0
    whole = data.sample(len(data.train)).flatten(1)
    twice = ((whole[:, None] - whole[None]).abs().amax(2) == 0).sum() - len(whole)
    assert int(same.sum()) <= int(twice)
