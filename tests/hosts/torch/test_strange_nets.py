"""Sixty nets of the second generator, and each of its blocks: nothing is wrong without a word. `bench/strange_nets.py` runs more."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from strange_nets import BLOCKS, StrangeNet, blocks, draw, judge

import irtool
from irtool.errors import ExportError


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


def _exported() -> irtool.FxGraph:
    """A net that only torch.export follows. It doubles a batch of one, and `int(...)` counts the batch back."""
    return irtool.trace(draw(5187), torch.randn(1, 3, 12, 12))


def test_a_number_that_is_made_of_sizes_stays_one_in_an_exported_graph() -> None:
    graph = _exported()
    assert graph.tracer == "export"
    assert "batch" not in [entry.what for entry in graph.fixed]
    assert judge(draw(5187), 5187).mismatches == []


def test_a_batch_that_is_right_at_one_and_two_alone_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(blocks, "int", int, raising=False)  # a module that has a name of its own for it keeps that
    graph = _exported()
    assert [entry.silent for entry in graph.fixed if entry.what == "batch"] == [True]
    assert any("the batch is fixed at 1" in note for note in graph.notes)
    for batch in (3, 5):
        with pytest.raises(AssertionError, match="traced for batch is fixed at 1"):
            graph.module.forward(torch.randn(batch, 3, 12, 12))
    with pytest.raises(ExportError):
        irtool.export_onnx(graph, tmp_path / "m.onnx")
