"""`irtool train` and the table of stages behind it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import irtool
from irtool.cli.flags import described
from irtool.cli.main import run
from irtool.errors import OptionError
from irtool.train import Settings, evaluate, load_data
from irtool.train.stages import train

ROOT = Path(__file__).parents[2]
SMALL = ["--data", "digits", "--image-size", "16", "--limit", "100", "--epochs", "2", "--batch-size", "50", "--device", "cpu"]
NET = "VGG:depth=11,width=0.125"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("train") / "plain"
    assert run(["train", NET, *SMALL, "--out", str(out), "--seed", "3", "--lr", "0.05"]) == 0
    return out


def test_what_is_written_agrees_with_itself(trained: Path) -> None:
    record = json.loads((trained / "train.json").read_text())
    assert record["facts"]["lr"] == 0.05
    assert record["facts"]["stage"] == "plain"
    assert record["facts"]["seed"] == 3
    assert [row["epoch"] for row in csv.DictReader((trained / "log.csv").open())] == ["1", "2"]
    data = load_data("digits", image_size=16, limit=100, channels=3)
    score = evaluate(irtool.load(trained / "model.safetensors"), data)
    assert score.accuracy == pytest.approx(record["records"][-1]["test_accuracy"], abs=1e-9)
    assert irtool.read_info(trained / "model.safetensors").preprocessing == data.preprocessing.to_dict()


def test_the_seed_decides_the_weights(trained: Path, tmp_path: Path) -> None:
    assert run(["train", NET, *SMALL, "--out", str(tmp_path), "--seed", "3", "--lr", "0.05"]) == 0
    one, other = (irtool.load(folder / "model.safetensors") for folder in (trained, tmp_path))
    assert all(torch.equal(one.params[name].data, value.data) for name, value in other.params.items())


def test_each_stage_and_its_options(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = str(trained)
    assert run(["train", base, *SMALL, "--stage", "sparse", "--strength", "1e-3", "--out", str(tmp_path / "sparse")]) == 0
    assert "of batch norm scales near zero" in capsys.readouterr().out
    assert run(["train", base, *SMALL, "--stage", "finetune", "--out", str(tmp_path / "finetune")]) == 0
    assert run(["train", NET, *SMALL, "--stage", "distill", "--teacher", base, "--temperature", "5", "--out", str(tmp_path / "kd")]) == 0
    facts = [json.loads((tmp_path / name / "train.json").read_text())["facts"] for name in ("sparse", "finetune", "kd")]
    assert facts[0]["strength"] == 1e-3
    assert [fact["lr"] for fact in facts] == [0.1, 0.01, 0.01]
    assert facts[2]["temperature"] == 5


def test_an_earlier_run_is_not_overwritten_but_resumed(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = ["train", NET, *SMALL, "--out", str(trained), "--seed", "3", "--lr", "0.05"]
    assert run(again) == 1
    assert "Add --resume to continue it" in capsys.readouterr().err
    before = irtool.load(trained / "model.safetensors")
    assert run([*again, "--resume"]) == 0
    after = irtool.load(trained / "model.safetensors")
    assert all(torch.equal(before.params[name].data, value.data) for name, value in after.params.items())


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["--stage", "distill"], "Name the model to learn from"),
        (["--alpha", "0.5"], "It belongs to distill"),
        (["--stage", "finetune", "--strength", "1e-3"], "It belongs to sparse"),
        (["--schedule", "linear"], "Choose one of: cosine"),
        (["--weights", "nothing.pth"], "Give the path of a .pth"),
        (["--data", "nowhere"], "Give a folder"),
        (["--stage", "sparse", "--strength", "much"], '"from:to" for a ramp'),
    ],
)
def test_mistakes_are_one_line_with_a_remedy(words: list[str], remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", NET, *SMALL, "--out", str(tmp_path / "out"), *words]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert remedy in error
    assert not (tmp_path / "out").exists()


def test_an_onnx_file_is_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    irtool.export_onnx(irtool.load(trained / "model.safetensors"), tmp_path / "net.onnx")
    assert run(["train", str(tmp_path / "net.onnx"), *SMALL, "--out", str(tmp_path / "out")]) == 1
    assert "Name the PyTorch model" in capsys.readouterr().err


def test_every_setting_is_a_flag_with_a_help_text(capsys: pytest.CaptureFixture[str]) -> None:
    helps = described(Settings)
    assert set(helps) == {field.name for field in fields(Settings)}
    assert run(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in shown for name in helps)


def test_stages_by_name_refuse_what_they_do_not_know() -> None:
    with pytest.raises(OptionError, match="Stages are plain, sparse"):
        train("warm", None, None)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="It has strength"):
        train("sparse", None, None, options={"temper": 1})  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_same_command_under_torchrun(tmp_path: Path) -> None:
    """Two processes with half the batch end where one with the whole batch ends; one of them writes."""
    small = [*SMALL[:-4], "--batch-size", "25", "--device", "cpu", "--seed", "3", "--lr", "0.05", "--out", str(tmp_path / "two")]
    words = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517", "-m", "irtool", "train", NET, *small]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=900, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("written to") == 1
    assert run(["train", NET, *SMALL, "--out", str(tmp_path / "one"), "--seed", "3", "--lr", "0.05"]) == 0
    two, one = (json.loads((tmp_path / name / "train.json").read_text()) for name in ("two", "one"))
    assert two["facts"]["processes"] == 2
    assert two["records"][-1]["train_loss"] == pytest.approx(one["records"][-1]["train_loss"], rel=1e-3)
