"""Mixed precision at the ends of what may be asked of it: no drop at all, any drop, and drops that make no sense."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import irtool
from irtool.cli.main import run
from irtool.models import VGG
from irtool.quant.search import fewest_float
from irtool.train import load_data
from irtool.workflows.quantize.judge import Score


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    data = load_data("digits", limit=60, channels=3)
    path = tmp_path_factory.mktemp("net") / "net.safetensors"
    graph = irtool.trace(VGG(11, width=0.0625).eval(), torch.zeros(2, *data.preprocessing.input_shape))
    irtool.save(graph, path, preprocessing=data.preprocessing.to_dict())
    return path


@pytest.fixture
def quantised(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, list[float]], tuple[int, Path]]:
    """Quantise with a --max-drop, where each trial is expected to lose what is given; the status and the folder."""

    def go(drop: str, losses: list[float]) -> tuple[int, Path]:
        given = iter(losses)
        judge = "irtool.workflows.quantize.judge.Judge"
        monkeypatch.setattr(f"{judge}.expected_drop", lambda self, path: next(given) if path.stem == "int8" else 0.0)
        monkeypatch.setattr(f"{judge}.score", lambda self, path, task: Score(0.5, 0.0, 0.0))
        options = ["--calib", "digits", "--limit", "60", "--images", "32", "--runs", "2", "--engine", "mnn", "--no-sensitivity"]
        return run(["quantize", str(saved), "--out", str(tmp_path / "out"), f"--max-drop={drop}", *options]), tmp_path / "out"

    return go


def test_no_drop_at_all(quantised: Callable[[str, list[float]], tuple[int, Path]]) -> None:
    status, out = quantised("0", [1e-4, 1e-4, 0.0, 1e-4])  # int8; with 1, 2, the second of the 2
    assert status == 0
    assert len(json.loads((out / "report.json").read_text())["layers_in_float"]) == 2


def test_no_drop_at_all_is_kept_where_nothing_is_lost(quantised: Callable[[str, list[float]], tuple[int, Path]]) -> None:
    status, out = quantised("0", [0.0])
    assert status == 0
    assert json.loads((out / "report.json").read_text())["layers_in_float"] == []


@pytest.mark.parametrize("drop", ["100", "1e9", "inf"])
def test_any_drop(drop: str, quantised: Callable[[str, list[float]], tuple[int, Path]]) -> None:
    status, out = quantised(drop, [1.0])
    assert status == 0
    assert json.loads((out / "report.json").read_text())["layers_in_float"] == []


@pytest.mark.parametrize("drop", ["-1", "-0.001", "-inf", "nan"])
def test_drops_that_make_no_sense(
    drop: str, quantised: Callable[[str, list[float]], tuple[int, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    status, out = quantised(drop, [])
    said = capsys.readouterr().err
    assert status == 1
    assert "a drop of 0 or more" in said
    assert "Traceback" not in said
    assert not out.exists()


def test_a_search_over_no_layers() -> None:
    assert fewest_float([], lambda floating: True) == ()
    assert fewest_float([], lambda floating: False) is None
