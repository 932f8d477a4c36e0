"""Files whose weights alone are smaller, which need no images: half floats, and integers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import irtool
from irtool.engines import MnnSession, OnnxSession
from irtool.errors import OptionError

Run = Callable[..., tuple[int, str, str]]


class Net(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 5)
        with torch.no_grad():
            self.conv.weight.mul_(scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


@pytest.fixture
def float_file(tmp_path: Path) -> Path:
    irtool.export_onnx(irtool.trace(Net().eval(), torch.zeros(1, 3, 8, 8)), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def _rounded(source: Path, path: Path) -> Path:
    """The file with its layers' weights as half floats have them, in float."""
    model = onnx.load(source)
    for one in model.graph.initializer:
        array = numpy_helper.to_array(one)
        if array.ndim > 1:
            one.CopyFrom(numpy_helper.from_array(array.astype(np.float16).astype(np.float32), one.name))
    onnx.save(model, path)
    return path


def test_half_floats_compute_what_rounded_weights_do(float_file: Path, tmp_path: Path, cli: Run) -> None:
    out = [tmp_path / "half.onnx", tmp_path / "half.mnn"]
    code, printed, _ = cli("export", float_file, "--fp16", "--out", out[0], "--out", out[1], "--json")
    assert code == 0
    told = json.loads(printed)
    assert [(link["left"], link["right"], link["ok"]) for link in told["chain"]][-2:] == [("float", "MNN, half", True), ("float", "ONNX, half", True)]  # fmt: skip
    assert [one.data_type for one in onnx.load(out[0]).graph.initializer if len(one.dims) > 1] == [onnx.TensorProto.FLOAT16] * 2
    reference = OnnxSession(_rounded(float_file, tmp_path / "rounded.onnx"))
    plain = OnnxSession(float_file)
    for batch in (1, 3):
        x = np.random.default_rng(batch).standard_normal((batch, 3, 8, 8)).astype(np.float32)
        assert np.abs(OnnxSession(out[0]).run(x)[0] - reference.run(x)[0]).max() < 1e-6
        assert 1e-6 < np.abs(OnnxSession(out[0]).run(x)[0] - plain.run(x)[0]).max() < 1e-2  # they are rounded indeed
        assert np.abs(MnnSession(out[1]).run(x)[0] - plain.run(x)[0]).max() < 1e-2


def test_a_weight_that_half_floats_cannot_hold_is_kept_or_refused(tmp_path: Path, cli: Run) -> None:
    irtool.export_onnx(irtool.trace(Net(1e6).eval(), torch.zeros(1, 3, 8, 8)), tmp_path / "large.onnx")
    assert cli("export", tmp_path / "large.onnx", "--half", "--out", tmp_path / "kept.onnx", "-q")[0] == 0
    assert [one.data_type for one in onnx.load(tmp_path / "kept.onnx").graph.initializer if len(one.dims) == 4] == [onnx.TensorProto.FLOAT]
    code, _, complaint = cli("export", tmp_path / "large.onnx", "--half", "--out", tmp_path / "refused.mnn")
    assert code == 1
    assert "float = MNN, half" in complaint.splitlines()[-1]
    assert not (tmp_path / "refused.mnn").exists()


@pytest.mark.parametrize("engine", ["onnxruntime", "mnn"])
def test_weights_alone_need_no_images(engine: str, float_file: Path, tmp_path: Path, cli: Run) -> None:
    code, printed, _ = cli("quantize", float_file, "--weights-only", "--engine", engine, "--out", tmp_path / "out", "--json")
    assert code == 0
    told = json.loads(printed)
    suffix = {"onnxruntime": ".onnx", "mnn": ".mnn"}[engine]
    assert {path.name for path in (tmp_path / "out").iterdir()} == ({f"int8{suffix}", f"half{suffix}", f"float{suffix}", "report.json"})
    assert told["accuracy"] is None
    session = {"onnxruntime": OnnxSession, "mnn": MnnSession}[engine]
    x = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    wanted, found = OnnxSession(float_file).run(x)[0], session(tmp_path / "out" / f"int8{suffix}").run(x)[0]
    assert 30 < 10 * np.log10((wanted**2).mean() / ((wanted - found) ** 2).mean()) < 80
    assert told["int8"]["snr_db"] > 30


def test_fewer_bits_are_further_off_and_said_to_be(float_file: Path, tmp_path: Path, cli: Run) -> None:
    _, printed, _ = cli("quantize", float_file, "--weights-only", "--weight-bits", 2, "--out", tmp_path / "two")
    assert "no images" in printed
    assert "--calib" in printed
    eight = json.loads(cli("quantize", float_file, "--weights-only", "--out", tmp_path / "eight", "--json")[1])
    two = json.loads((tmp_path / "two" / "report.json").read_text())
    assert two["int8"]["snr_db"] < eight["int8"]["snr_db"] - 10


def test_without_images_integers_between_layers_are_refused(float_file: Path, tmp_path: Path, cli: Run) -> None:
    code, _, complaint = cli("quantize", float_file, "--out", tmp_path / "out")
    assert code == 1
    assert "--calib" in complaint
    assert "--weights-only" in complaint
    code, _, complaint = cli("quantize", float_file, "--weights-only", "--data", "digits", "--out", tmp_path / "out")
    assert code == 1
    assert "--calib" in complaint
    assert not (tmp_path / "out").exists()


def test_from_python_the_same_is_said(float_file: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="quantize_weights"):
        irtool.quantize(float_file, tmp_path / "out")
    with pytest.raises(OptionError, match="Did you mean weight_bits"):
        irtool.quantize_weights(float_file, tmp_path / "out", weight_bit=4)
    done = irtool.quantize_weights(float_file, tmp_path / "out", weight_bits=4)
    assert done.file.stat().st_size == done.forms["int8"].bytes < done.forms["half"].bytes < done.forms["float"].bytes
    assert "no accuracy" in done.verdict
    assert not (tmp_path / "out" / "int8.json").exists()
