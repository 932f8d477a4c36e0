"""A sentence says where a smaller model got no faster, why, and what helps."""

from __future__ import annotations

from math import inf

import pytest
import torch
from torch import nn

import irtool
from irtool.engines.session import cores
from irtool.workflows.compress.speed import slower_sentences


def net(*widths: int, groups: int = 1, size: int = 8) -> irtool.FxGraph:
    layers = [nn.Conv2d(a, b, 3, padding=1, groups=groups if a > 3 else 1) for a, b in zip((3, *widths[:-1]), widths, strict=True)]
    return irtool.trace(nn.Sequential(*layers).eval(), torch.zeros(1, 3, size, size))


@pytest.mark.parametrize(
    ("graph", "why", "remedy"),
    [
        (net(13, 15, 16), "3 of 3 convolutions have widths that are no multiple of 4, as 0 with 13", "--round-to at auto"),
        (net(8, 8), "what an engine takes for each operator outweighs them", "Fewer layers"),
        (net(16, 16, 16, groups=16, size=64), "2 of 3 convolutions are depthwise or grouped", "--budget latency=50%"),
        (net(64, 64, size=32), "Nothing in its graph says why", "idle machine"),
    ],
    ids=["narrow", "small", "depthwise", "unknown"],
)
def test_the_reason_and_the_remedy(graph: irtool.FxGraph, why: str, remedy: str) -> None:
    ratios, intervals = (
        {"torch": 0.9, "onnxruntime": 1.31, "mnn": 1.01},
        {"torch": (0.9, 0.9), "onnxruntime": (1.3, 1.35), "mnn": (1.0, 1.06)},
    )
    (said,) = slower_sentences(graph, ratios, intervals, 1)
    assert said.startswith("Slower than the original in onnxruntime: 1.31 times its time, 1 thread. ")
    assert why in said
    assert remedy in said


def test_nothing_is_said_of_what_is_faster() -> None:
    assert slower_sentences(net(8, 8), {"onnxruntime": 0.7, "mnn": 1.0}, {"onnxruntime": (0.4, 1.0), "mnn": (0.98, 1.02)}, 1) == ()


@pytest.mark.parametrize(
    ("ratio", "interval", "threads", "load", "clause"),
    [
        (1.31, (0.8, 1.6), 1, 3.0, "between 0.80 and 1.60 times the original's time, 1 thread. "),
        (0.98, (0.8, 1.2), 1, 0.0, "between 0.80 and 1.20 times the original's time, 1 thread. "),
        (1.31, (0, inf), 1, 0.0, "too few paired runs, 1 thread. "),
        (1.31, (1.3, 1.32), 2, 3.0, "between 1.30 and 1.32 times the original's time, 2 threads; 3.0 programs want each core. "),
    ],
    ids=["pairs disagree", "perhaps faster", "few pairs", "loaded machine"],
)
def test_what_cannot_be_told_is_not_called_slower(
    ratio: float, interval: tuple[float, float], threads: int, load: float, clause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (load * cores(), 0, 0))
    (said,) = slower_sentences(net(8, 8), {"onnxruntime": ratio}, {"onnxruntime": interval}, threads)
    assert said == f"Not measurable now in onnxruntime: {clause}Time both again on an idle machine."


def test_what_is_known_to_be_slower_is_on_a_machine_that_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (0.9 * cores(), 0, 0))
    (said,) = slower_sentences(net(8, 8), {"onnxruntime": 1.31}, {"onnxruntime": (1.3, 1.32)}, 2)
    assert said.startswith("Slower than the original in onnxruntime: 1.31 times its time, 2 threads. ")
