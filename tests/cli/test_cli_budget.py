"""Budgets in the shell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from macs_clock import MacsClock
from typer.testing import CliRunner

from irtool.cli.main import app
from irtool.cli.wishes import budget_of, limits_of, step_of
from irtool.errors import IrtoolError
from irtool.pruning.allocation import latency
from irtool.workflows.compress import run as compress_run
from irtool.workflows.compress.built import Timed

MODEL = ["compress", "PreResNet:depth=11,width=0.5", "--input", "1x3x32x32"]


def test_words() -> None:
    assert budget_of(["macs=50%", "params=1.5M"]) == {"macs": 0.5, "params": 1.5e6}
    assert budget_of(["bytes = 500k"]) == {"bytes": 5e5}
    assert budget_of(["latency=50%"]) == {"latency": 0.5}
    assert budget_of(["latency=5ms"]) == {"latency": 5.0}
    assert budget_of([]) is None
    assert (step_of("auto"), step_of("8")) == ("auto", 8)
    assert limits_of(["layer3.*=70%", "fc=0.5"]) == {"layer3.*": 0.7, "fc": 0.5}


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["macs"], "Write macs=50%"),
        (["macs=half"], "Write"),
        (["flops=50%"], "Choose among"),
        (["macs=0"], "Give a share"),
        (["macs=1k", "macs=2k"], "once"),
        (["macs=5ms"], "Give latency=5ms"),
        (["latency=0.5ms"], "a share, as in latency=50%"),
        (["macs=150%"], "Give at most 100%"),
        (["params=100.5%"], "Give at most 100%"),
    ],
)
def test_what_cannot_be_read(words: list[str], remedy: str) -> None:
    with pytest.raises(IrtoolError, match=remedy):
        budget_of(words)


def test_compress_keeps_to_it(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app,
        [
            *MODEL,
            "--budget",
            "macs=50%",
            "--budget",
            "params=60%",
            "--layer-limit",
            "layer3=60%",
            "--runs",
            "1",
            "--out",
            str(tmp_path / "small"),
        ],
    )
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "small" / "report.json").read_text())
    assert report["options"]["budget"] == {"macs": 0.5, "params": 0.6}
    assert report["after"]["macs"] <= 0.5 * report["before"]["macs"]
    plan = json.loads((tmp_path / "small" / "plan.json").read_text())
    assert plan["budget"] == {"macs": 0.5, "params": 0.6}
    assert plan["limits"] == {"layer3": 0.6}


def test_compress_keeps_to_a_latency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that takes its multiply-accumulates' time, and is slower with the result in the end."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(latency, "GraphClock", MacsClock)
    timed = [({}, {}), ({"mnn": 1.2}, {"mnn": (1.16, 1.24)})]
    monkeypatch.setattr(
        compress_run, "timed", lambda models, settings, screen: [Timed(one.measured, *how) for one, how in zip(models, timed, strict=True)]
    )
    flags = ["--budget", "latency=60%", "--engine", "mnn", "--out", str(tmp_path / "small")]
    done = CliRunner().invoke(app, [*MODEL, *flags])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "small" / "report.json").read_text())
    assert 0.3 <= report["after"]["macs"] / report["before"]["macs"] <= 0.6 * (1 + latency.TOLERANCE)
    said = " ".join(done.output.split())
    assert "of the original's in mnn, measured on this machine with 1 thread" in said
    assert "Slower than the original in mnn: 1.20 times its time, 1 thread." in said
    assert report["speed"][0].startswith("Slower than the original in mnn")
    assert list((tmp_path / "cache" / "irtool" / "layer-times").glob("mnn-*.json"))


@pytest.mark.parametrize(
    ("flags", "remedy"),
    [
        (["--budget", "macs=50%", "--ratio", "0.3"], "Give one of them"),
        (["--layer-limit", "layer3=50%"], "Give --budget too"),
        (["--budget", "macs=50%", "--criterion", "fisher"], "Give --data too"),
        (["--budget", "macs=0.01%"], "least reachable"),
        (["--budget", "latency=50%"], "Give one of onnxruntime, mnn"),
        (["--budget", "macs=50%", "--engine", "mnn"], "Ask for latency"),
        (["--budget", "latency=50%", "--engine", "tensorrt"], "Choose onnxruntime or mnn"),
        (["--round-to", "some"], "Write auto, or a whole number"),
        (["--budget", "macs=50%", "--depth"], "Give --data too"),
        (["--budget", "macs=50%", "--allocator", "measured"], "Give --data too"),
        (["--budget", "macs=50%", "--groups", "half"], "is not one of"),
    ],
)
def test_impossible_wishes(flags: list[str], remedy: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [*MODEL, *flags, "--out", str(tmp_path / "small")])
    assert done.exit_code != 0
    assert remedy in " ".join((done.output + str(done.exception)).split())
    assert not (tmp_path / "small").exists()
