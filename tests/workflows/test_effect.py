"""A sentence says what a compression did to the answers, from both models run on the same samples."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import irtool
from irtool.train import Data
from irtool.train.data.dataset import load_data
from irtool.workflows.compress.effect import IMAGES, Effect, effect_of, sentences
from irtool.workflows.folders.record import Measured

MODEL = Measured(params=1, macs=1, weight_bytes=4, accuracy=0.9, images=359, file_bytes={})


@pytest.fixture(scope="module")
def data() -> Data:
    """The digits, 32 x 32."""
    return load_data("digits", limit=60)


def _net(batch: int = 2, channels: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)).eval()


def test_the_distance_is_that_of_the_outputs(data: Data) -> None:
    channels = data.preprocessing.channels
    model, x = _net(channels=channels), torch.randn(2, channels, *data.preprocessing.size)
    graph = irtool.trace(model, x)
    assert effect_of(graph, graph.clone(), data) == Effect(0.0, min(IMAGES, len(data.test)), "images", 1.0)
    other = graph.clone()
    with torch.no_grad():
        other.module.get_submodule("4").weight.mul_(1.5)
        other.module.get_submodule("4").bias.mul_(1.5)
    found = effect_of(graph, other, data)
    assert found is not None
    assert found.difference == pytest.approx(0.5, rel=1e-5)
    assert found.agreement == 1.0
    with torch.no_grad():
        other.module.get_submodule("4").bias.copy_(torch.eye(10)[3] * 100)
    moved = effect_of(graph, other, data)
    assert moved is not None
    assert moved.agreement == pytest.approx(float((graph.run(data.preprocessing.normalise(data.test.images))).argmax(1).eq(3).float().mean()), abs=0.05)  # fmt: skip
    noise = effect_of(graph, other, None)
    assert noise is not None
    assert (noise.kind, noise.agreement) == ("noise", None)


def test_a_fall_is_told_with_the_next_command_and_unknown_accuracy_is_said_to_be() -> None:
    effect = Effect(0.0312, 128, "images", 0.985)
    said = sentences(effect, MODEL, replace(MODEL, accuracy=0.85), "labels")
    assert said[0] == "original against compressed: outputs differ by 3.12 % on 128 test images, top-1 agreement 98.5 %, accuracy 90.00 % -> 85.00 % (359 images)"  # fmt: skip
    assert said[1].startswith("To gain it back: irtool train ")
    assert len(sentences(effect, MODEL, replace(MODEL, accuracy=0.897), "labels")) == 1
    blind = replace(MODEL, accuracy=None)
    assert sentences(Effect(1.0, 8, "noise", None), blind, blind, "labels") == ("original against compressed: outputs differ by 100 % on 8 samples of noise, accuracy unknown: no labels",)  # fmt: skip
    assert sentences(effect, MODEL, MODEL, "answers")[0].endswith("accuracy unknown: no labels")


def test_compress_says_it_before_the_chain_and_keeps_it(tmp_path: Path, cli: Callable[..., tuple[int, str, str]]) -> None:
    code, printed, error = cli("compress", "VGG:depth=11,width=0.0625", "--input", "1x3x32x32", "--runs", "1", "--out", tmp_path / "small")
    assert code == 0, error
    assert printed.index("original against compressed: outputs differ by ") < printed.index("Chain of equality")
    effect = json.loads((tmp_path / "small" / "report.json").read_text())["effect"]
    assert effect["kind"] == "noise"
    assert effect["difference"] > 0
    assert f"outputs differ by {100 * effect['difference']:.3g} % on 8 samples of noise, accuracy unknown: no labels" in printed
