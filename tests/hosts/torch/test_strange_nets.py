"""Sixty nets of the second generator, and each of its blocks: nothing is wrong without a word. `bench/strange_nets.py` runs more."""

from __future__ import annotations

import pytest
import torch
from strange_nets import BLOCKS, StrangeNet, draw, judge


@pytest.mark.parametrize("seed", range(60))
def test_no_silent_mismatch(seed: int) -> None:
    verdict = judge(draw(seed), seed)
    assert verdict.mismatches == []
    assert verdict.tracer != ""


LOSES_NOTHING = frozenset(
    {"scattered", "gathered", "added_at", "mirrored", "sorted_places", "written_slot", "option_a_by_zeros", "sampled"}
)
"""Blocks whose own channels stay today, with a reason: an index that is computed, or parts that are written one by one."""


@pytest.mark.parametrize("block", sorted(set(BLOCKS) - LOSES_NOTHING))
def test_every_block_loses_channels(block: str) -> None:
    torch.manual_seed(0)
    verdict = judge(StrangeNet((block,), 8, (False,), "map").eval())
    assert verdict.mismatches == []
    assert verdict.share >= 0.29
