"""Pools and resizing in int8 files for MNN, which computes some of them wrong in integers. The oracle is onnxruntime in float."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from quant_nets import Mixed, exported, sqnr
from torch import Tensor, nn

from irtool.engines import MnnSession, OnnxSession
from irtool.engines.mnn import int8_check as mnn_guard
from irtool.engines.mnn import int8_form as mnn_form
from irtool.engines.mnn.int8 import MnnInt8, export_mnn_int8
from irtool.engines.mnn.int8_policy import MNN_POLICY
from irtool.engines.mnn.profile import mnn_profile
from irtool.engines.onnxruntime.calibrate import calibrate, observed_model
from irtool.engines.onnxruntime.prepare import prepared
from irtool.errors import ExportError, FileError
from irtool.quant import Scheme, make_recipe, place
from irtool.quant.placement import DefUse, Int8Policy, non_negative

SIZE = (4, 3, 9, 9)
NAMES = {"Pooling", "Interp"}


class Branches(nn.Module):
    """Two pools of one tensor, one of which is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right, self.last = (
            nn.Conv2d(3, 4, 3, padding=1),
            nn.Conv2d(4, 4, 1),
            nn.Conv2d(4, 4, 1),
            nn.Conv2d(12, 3, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        most = F.max_pool2d(x, 3, 1, 1)
        return self.last(torch.cat([self.left(most), self.right(F.avg_pool2d(x, 3, 1, 1)), most], 1))


class Pooled(nn.Module):
    """A sum or a concatenation, pooled; both of its parts are rectified, or one."""

    def __init__(self, concat: bool, rectified: bool) -> None:
        super().__init__()
        self.concat, self.rectified = concat, rectified
        self.left, self.right = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.last = nn.Sequential(nn.Conv2d(8 if concat else 4, 4, 1), nn.Conv2d(4, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.relu(self.left(x)), self.right(x)
        b = F.relu(b) if self.rectified else b
        return self.last(F.max_pool2d(torch.cat([a, b], 1) if self.concat else a + b, 2))


class Peak(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.adaptive_max_pool2d(self.conv(x), 1).flatten(1))


def between(*middle: nn.Module) -> nn.Module:
    """Between layers in integers; a last one computes in float."""
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *middle, nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))


def mean_of(*middle: nn.Module) -> nn.Module:
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *middle, pool, nn.Flatten(), nn.Linear(8, 8), nn.Linear(8, 3))


FLOAT = {
    "max": between(nn.MaxPool2d(2)),
    "max with padding": between(nn.MaxPool2d(3, 2, 1)),
    "max twice": between(nn.MaxPool2d(2), nn.MaxPool2d(2)),
    "max of the input": nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(3, 4, 1)),
    "max before relu": between(nn.MaxPool2d(2), nn.ReLU()),
    "max before linear": nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 3)),
    "max at the end": nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2)),
    "max of silu": between(nn.SiLU(), nn.MaxPool2d(2)),
    "max of a sum": Pooled(False, False),
    "max of a concatenation": Pooled(True, False),
    "max of everything": Peak(),
    "max of a window larger than the image": between(nn.ReLU(), nn.MaxPool2d(11, 1, 5)),
    "mean with zeros": between(nn.AvgPool2d(3, 1, 1)),
    "mean with zeros of relu": between(nn.ReLU(), nn.AvgPool2d(3, 2, 1)),
    "mean of the input": nn.Sequential(nn.AvgPool2d(3, 3), nn.Conv2d(3, 4, 1)),
    "mean": between(nn.AvgPool2d(2)),
    "mean without zeros": between(nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
    "mean of all": mean_of(),
    "mean of all of silu": mean_of(nn.SiLU()),
    "bilinear": between(nn.ReLU(), nn.Upsample(scale_factor=2, mode="bilinear")),
    "bilinear, corners": between(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)),
    "branches": Branches(),
}
INTEGER = {
    "max of relu": between(nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
    "max of a window as large as the image": between(nn.ReLU(), nn.MaxPool2d(9, 1, 4)),
    "max of relu6": between(nn.ReLU6(), nn.MaxPool2d(2, ceil_mode=True)),
    "max of sigmoid": between(nn.Sigmoid(), nn.MaxPool2d(2)),
    "max of a sum of relus": Pooled(False, True),
    "max of a concatenation of relus": Pooled(True, True),
    "nearest": between(nn.Upsample(scale_factor=2)),
}


def written(module: nn.Module, folder: Path, scheme: Scheme | None = None) -> tuple[onnx.ModelProto, np.ndarray, MnnInt8]:
    """The prepared model, images, and the int8 file folder/int8.mnn."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5)
            )
    model = prepared(exported(module, folder, SIZE))
    batches = [torch.randn(SIZE, generator=generator).numpy() for _ in range(6)]
    placed = place(model, MNN_POLICY)
    stats = calibrate(model, placed.tensors, batches, threads=1)
    scheme = scheme or Scheme("int8", symmetric=True, method="minmax")
    return model, batches[0], export_mnn_int8(model, make_recipe(model, placed, stats, scheme), folder / "int8.mnn")


@pytest.mark.parametrize("name", [*FLOAT, *INTEGER])
def test_mnn_computes_a_pool_right_and_in_integers_where_it_can(name: str, tmp_path: Path) -> None:
    _, x, done = written((FLOAT | INTEGER)[name], tmp_path)
    assert done.missed == ()
    assert done.export.path == tmp_path / "int8.mnn"
    expected = OnnxSession(tmp_path / "float.onnx", 1).run(x)[0]
    assert sqnr(MnnSession(tmp_path / "int8.mnn", 1).run(x)[0], expected) > 27
    pools = [run.integer for run in mnn_profile(tmp_path / "int8.mnn", x[:1], runs=1) if run.kind in NAMES]
    assert pools
    assert set(pools) == {name in INTEGER}


def test_one_border_serves_all_readers(tmp_path: Path) -> None:
    model, _, _ = written(FLOAT["branches"], tmp_path)
    form, _ = mnn_form.mnn_form(model, {}, {})
    onnx.checker.check_model(form, full_check=True)
    borders = [node.input[0] for node in form.graph.node if node.op_type == "Max"]
    assert len(borders) == len(set(borders)) == 3  # before both pools, behind each


@pytest.mark.parametrize("name", ["Mixed", *FLOAT, *INTEGER])
def test_what_is_said_not_to_be_negative_is_not(name: str, tmp_path: Path) -> None:
    model = prepared(exported(Mixed() if name == "Mixed" else (FLOAT | INTEGER)[name], tmp_path, SIZE))
    claimed = sorted(non_negative(DefUse(model)))
    if name in ("max of relu", "max of a concatenation of relus"):
        assert {node.output[0] for node in model.graph.node if node.op_type in ("Relu", "MaxPool", "Concat")} <= set(claimed)
    session = ort.InferenceSession(observed_model(model, claimed).SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).normal(0, 3, SIZE).astype(np.float32)
    assert all((values >= 0).all() for values in session.run(claimed, {"input": x}) if claimed)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_batch_norm_that_stays_computes_in_float(batch_norm: bool, tmp_path: Path) -> None:
    norm = nn.BatchNorm2d(4)
    norm.running_mean, norm.running_var = torch.linspace(-1, 1, 4), torch.linspace(0.5, 2, 4)
    middle = (nn.Conv2d(4, 4, 1), nn.MaxPool2d(2), norm) if batch_norm else (nn.Conv2d(4, 4, 1), nn.MaxPool2d(2))
    model, x, done = written(between(nn.ReLU(), *middle), tmp_path)
    assert ("BatchNormalization" in {node.op_type for node in model.graph.node}) == batch_norm
    assert sqnr(MnnSession(tmp_path / "int8.mnn", 1).run(x)[0], OnnxSession(tmp_path / "float.onnx", 1).run(x)[0]) > 27
    ran = [(run.kind, run.integer) for run in mnn_profile(tmp_path / "int8.mnn", x[:1], runs=1)]
    assert [integer for kind, integer in ran if kind == "Scale"] == [False] * batch_norm
    assert [integer for kind, integer in ran if kind == "Convolution"] == [True, True, True, False]
    assert len(done.layers) == 3


@pytest.mark.parametrize(
    "end", [nn.Identity(), nn.Flatten(), nn.PixelShuffle(2), nn.Softmax(1), nn.Upsample(scale_factor=2, mode="bilinear")]
)
def test_the_last_layer_computes_in_float_with_8_bit_weights(end: nn.Module, tmp_path: Path) -> None:
    model, x, _ = written(nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 512, 3), end), tmp_path)
    placed = place(model, MNN_POLICY)
    assert [(layer.op, layer.weight) for layer in placed.layers] == [("Conv", "0.weight")]
    assert [why for why in placed.floating.values() if "8 bits would round too much" in why]
    result = MnnSession(tmp_path / "int8.mnn", 1).run(x)[0]
    assert len(np.unique(result)) > 0.9 * result.size  # of integers there are 255
    assert sqnr(result, OnnxSession(tmp_path / "float.onnx", 1).run(x)[0]) > 35
    assert (tmp_path / "int8.mnn").stat().st_size < 0.3 * (tmp_path / "float.onnx").stat().st_size


def test_between_layers_in_float_the_last_one_has_float_weights(tmp_path: Path) -> None:
    """MNN takes a layer with 8-bit weights that lies between integers for an integer one, and its numbers are nonsense."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1, groups=8), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    model = prepared(exported(net, tmp_path, SIZE))
    x = np.random.default_rng(0).normal(0, 1, SIZE).astype(np.float32)
    middle = place(model, MNN_POLICY).layers[1]
    placed = place(model, MNN_POLICY, [middle.name])
    recipe = make_recipe(model, placed, calibrate(model, placed.tensors, [x], threads=1), Scheme("int8", symmetric=True))
    done = export_mnn_int8(model, recipe, tmp_path / "int8.mnn")
    assert middle.name not in done.layers
    assert sqnr(MnnSession(tmp_path / "int8.mnn", 1).run(x)[0], OnnxSession(tmp_path / "float.onnx", 1).run(x)[0]) > 25


# --- the guard ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["max", "max before linear", "max of a concatenation"])
def test_a_file_that_is_grossly_wrong_is_not_written(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "MNN_POLICY", Int8Policy(outputs=True))
    monkeypatch.setattr(mnn_form, "mnn_unfit", lambda wiring: {})
    with pytest.raises(ExportError, match=r"in MNN the int8 model is off by \d+ % of its signal.*wrong in integers: leave layers"):
        written(FLOAT[name], tmp_path)
    assert not list(tmp_path.glob("*.mnn"))


def test_a_poor_recipe_is_not_called_a_fault_of_mnn(tmp_path: Path) -> None:
    scheme = Scheme("int8", symmetric=True, weight_bits=2, correct_bias=False)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    model = prepared(exported(net, tmp_path, SIZE))
    placed = place(model, MNN_POLICY)
    stats = calibrate(model, placed.tensors, [torch.randn(SIZE, generator=generator).numpy()], threads=1)
    recipe = make_recipe(model, placed, stats, scheme)
    export_mnn_int8(model, recipe, tmp_path / "poor.mnn")
    better = make_recipe(model, placed, stats, Scheme("int8", symmetric=True))
    with pytest.raises(ExportError, match="is off by"):  # but weights that are cut off are
        export_mnn_int8(model, replace(better, bits=2), tmp_path / "other.mnn")


def test_the_guard_keeps_still_where_nothing_is_promised(tmp_path: Path) -> None:
    model, _, _ = written(FLOAT["max"], tmp_path)
    placed = place(model, MNN_POLICY)
    recipe = make_recipe(model, placed, calibrate(model, placed.tensors, [np.ones(SIZE, np.float32)]), Scheme("int8", symmetric=True))
    old = onnx.ModelProto()
    old.CopyFrom(model)
    old.opset_import[0].version = 12
    mnn_guard.require_promised(old, recipe, tmp_path / "none.mnn")  # too old for a simulation: the file is not even opened
    with pytest.raises(FileError, match=r"none.mnn"):
        mnn_guard.require_promised(model, recipe, tmp_path / "none.mnn")
