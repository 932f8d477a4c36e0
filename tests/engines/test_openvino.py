"""OpenVINO as irtool imports it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import irtool
from irtool.cli.main import run
from irtool.engines import export_onnx

if importlib.util.find_spec("openvino") is None:
    pytest.skip("OpenVINO is not installed: pip install 'irtool[openvino]'", allow_module_level=True)

WATCH = """
import sys
from irtool.engines.openvino.session import openvino
seen = []
sys.addaudithook(lambda event, _: seen.append(event))
openvino().Core()
reached = [event for event in seen if event.partition(".")[0] in ("socket", "urllib", "http", "subprocess") or event in ("os.fork", "os.posix_spawn")]
assert not reached, reached
assert "openvino_telemetry" not in sys.modules
"""


def test_nobody_is_told_that_it_is_used() -> None:
    """The wheel's telemetry reports each import over the network, from a process of its own."""
    done = subprocess.run([sys.executable, "-c", WATCH], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_verify_runs_a_file_in_it_if_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.onnx"
    export_onnx(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)), path, example_inputs=torch.randn(1, 3, 8, 8))
    assert [link.name for link in irtool.verify(path).links] == ["read = ONNX"]
    chain = irtool.verify(path, engines=["openvino"])
    assert [link.name for link in chain.links] == ["read = ONNX", "ONNX = OpenVINO"]
    assert chain.ok
    assert run(["verify", str(path), "--engine", "mnn"]) == 1
    assert "mnn has files of its own" in capsys.readouterr().err
