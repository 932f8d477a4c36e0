"""Budgets in the shell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from irtool.cli.main import app
from irtool.cli.wishes import budget_of, limits_of
from irtool.errors import IrtoolError

MODEL = ["compress", "PreResNet:depth=11,width=0.5", "--input", "1x3x32x32"]


def test_words() -> None:
    assert budget_of(["macs=50%", "params=1.5M"]) == {"macs": 0.5, "params": 1.5e6}
    assert budget_of(["bytes = 500k"]) == {"bytes": 5e5}
    assert budget_of([]) is None
    assert limits_of(["layer3.*=70%", "fc=0.5"]) == {"layer3.*": 0.7, "fc": 0.5}


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["macs"], "Write macs=50%"),
        (["macs=half"], "Write"),
        (["flops=50%"], "Choose among"),
        (["macs=0"], "Give a share"),
        (["macs=1k", "macs=2k"], "once"),
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


@pytest.mark.parametrize(
    ("flags", "remedy"),
    [
        (["--budget", "macs=50%", "--ratio", "0.3"], "Give one of them"),
        (["--layer-limit", "layer3=50%"], "Give --budget too"),
        (["--budget", "macs=50%", "--criterion", "fisher"], "Give --data too"),
        (["--budget", "macs=0.01%"], "least reachable"),
    ],
)
def test_impossible_wishes(flags: list[str], remedy: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [*MODEL, *flags, "--out", str(tmp_path / "small")])
    assert done.exit_code != 0
    assert remedy in " ".join((done.output + str(done.exception)).split())
    assert not (tmp_path / "small").exists()
