"""ncnn's two files: what is mended before they are written, what is refused, what `export` and `compress` do with them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from irtool.cli.main import run
from irtool.engines import OnnxSession, export_onnx
from irtool.engines.ncnn.export import export_ncnn
from irtool.engines.ncnn.param import read_param
from irtool.engines.ncnn.session import NcnnSession
from irtool.errors import ExportError, FileError

if any(importlib.util.find_spec(name) is None for name in ("ncnn", "pnnx")):
    pytest.skip("ncnn is not installed: pip install 'irtool[ncnn]'", allow_module_level=True)


class Selected(nn.Module):
    """A selection of channels, in another order, and a part of odd size."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(4, 6, 3)
        self.index: torch.Tensor
        self.register_buffer("index", torch.tensor([7, 1, 4, 2]))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.second(self.first(x)[:, self.index].relu())
        return y, y.mean((2, 3))


def _written(net: nn.Module, folder: Path, size: tuple[int, ...] = (3, 15, 13)) -> tuple[NcnnSession, OnnxSession]:
    torch.manual_seed(0)
    export_onnx(net.eval(), folder / "net.onnx", example_inputs=torch.randn(1, *size))
    export_ncnn(folder / "net.onnx", folder / "net.param")
    return NcnnSession(folder / "net.param", 1), OnnxSession(folder / "net.onnx", 1)


def test_selections_and_several_outputs_are_right_at_any_batch(tmp_path: Path) -> None:
    session, reference = _written(Selected(), tmp_path)
    assert [spec.shape for spec in session.outputs] == [(None, 6, 13, 11), (None, 6)]
    for batch in (1, 3):
        images = np.random.default_rng(batch).normal(size=(batch, 3, 15, 13)).astype(np.float32)
        for got, expected in zip(session.run(images), reference.run(images), strict=True):
            assert np.abs(got - expected).max() <= 1e-5


def test_a_model_without_weights_has_an_empty_file_beside_it(tmp_path: Path) -> None:
    session, reference = _written(nn.Upsample(scale_factor=2, mode="bilinear"), tmp_path)
    images = np.random.default_rng(0).normal(size=(2, 3, 15, 13)).astype(np.float32)
    assert np.abs(session.run(images)[0] - reference.run(images)[0]).max() <= 1e-5
    (tmp_path / "net.bin").unlink()
    with pytest.raises(FileError, match="no such file"):
        NcnnSession(tmp_path / "net.param")


def test_what_ncnn_computes_otherwise_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="numbers differ"):
        _written(nn.Softmax(1), tmp_path)  # ncnn counts axes of samples, and its converter takes this one for another
    assert not list(tmp_path.glob("net.[pb]*"))


def test_free_sizes_and_other_types_are_told(tmp_path: Path) -> None:
    export_onnx(nn.ReLU(), tmp_path / "net.onnx", example_inputs=torch.randint(0, 9, (1, 3, 8, 8)))
    with pytest.raises(ExportError, match="int64: ncnn takes float32"):
        export_ncnn(tmp_path / "net.onnx", tmp_path / "net.param")


@pytest.mark.parametrize(
    "text", ["7767517\n1 1\nInput x 0 1 x 0=a 1=2 2=3\n", "7767517\n2 2\nInput x 0 1 x\n", "7767517\n1 1\nReLU r 1 1 x\n", "1\n1 1\n"]
)
def test_texts_that_are_no_models_are_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "net.param").write_text(text)
    with pytest.raises(FileError):
        read_param(tmp_path / "net.param")


def test_commands_write_both_files_and_look_for_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["VGG:depth=11,width=0.0625", "-i", "1x3x32x32"]
    assert run(["export", *model, "--out", str(tmp_path / "a.onnx"), "--out", str(tmp_path / "a.param"), "-q"]) == 0
    assert run(["verify", str(tmp_path / "a.onnx"), str(tmp_path / "a.param"), "-q"]) == 0
    assert run(["compress", *model, "--ratio", "0.5", "--runs", "2", "--out", str(tmp_path / "small"), "-q"]) == 0
    assert (tmp_path / "small" / "model.bin").stat().st_size > 1000
    (tmp_path / "small" / "model.bin").unlink()
    capsys.readouterr()
    assert run(["verify", str(tmp_path / "small"), "-q"]) == 1
    assert "model.bin is gone" in capsys.readouterr().err
    assert run(["quantize", str(tmp_path / "small"), "--calib", "digits", "--engine", "ncnn", "--out", str(tmp_path / "q")]) != 0


def test_a_layer_that_ncnn_lacks_is_named(tmp_path: Path) -> None:
    class Summed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cumsum(torch.erf(x), 2)

    with pytest.raises(ExportError, match=r"ncnn has no layer \S+\. Replace the operator"):
        _written(Summed(), tmp_path)
