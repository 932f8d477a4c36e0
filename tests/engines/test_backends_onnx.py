"""ONNX export and onnxruntime sessions against torch in numbers."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from random_norms import randomise
from torch import fx, nn

from irtool.engines import OnnxSession, TensorSpec, TorchSession, export_onnx
from irtool.engines.agreement import sample_inputs
from irtool.engines.flat_module import evaluating
from irtool.engines.onnxruntime import export as onnx_export
from irtool.errors import BackendError, ExportError, FileError, OptionError


class Residual(nn.Module):
    """Pre-activation blocks with a channel selection after the first batch norm, as pruned PreResNets have."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.norm = nn.ModuleList(nn.BatchNorm2d(12) for _ in range(3))
        self.inner = nn.ModuleList(nn.Conv2d(7, 5, 3, padding=1, bias=False) for _ in range(2))
        self.inner_norm = nn.ModuleList(nn.BatchNorm2d(5) for _ in range(2))
        self.outer = nn.ModuleList(nn.Conv2d(5, 12, 1, bias=False) for _ in range(2))
        self.register_buffer("kept", torch.tensor([0, 2, 3, 5, 8, 10, 11]))
        self.head = nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for norm, inner, inner_norm, outer in zip(self.norm[:2], self.inner, self.inner_norm, self.outer, strict=True):
            y = torch.index_select(torch.relu(norm(x)), 1, self.kept)
            x = x + outer(torch.relu(inner_norm(inner(y))))
        return self.head(F.adaptive_avg_pool2d(torch.relu(self.norm[2](x)), 1).flatten(1))


class Grouped(nn.Module):
    """Grouped and depthwise convolutions with a channel shuffle between, an unequal split and a concat."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(4, 16, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16)
        self.transposed = nn.ConvTranspose2d(16, 8, 2, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu6(self.norm(self.a(x)))
        first, second = x.split([5, 11], dim=1)
        x = torch.cat([second, first], dim=1)
        n, c, h, w = x.size(0), x.size(1), x.size(2), x.size(3)
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
        return self.transposed(F.hardswish(self.depthwise(x)))


class Attention(nn.Module):
    """chunk, pixel shuffle, scaled dot-product attention, interpolation, and a dict with a nested tuple as the result."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.qkv, self.up = (
            nn.Conv2d(3, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.Linear(16, 48),
            nn.Conv2d(16, 16, 1),
        )

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        a, b = self.norm(self.stem(x)).chunk(2, dim=1)
        x = torch.cat([F.silu(a), F.gelu(b)], dim=1)
        tokens = self.qkv(x.flatten(2).transpose(1, 2))
        q, k, v = tokens.reshape(tokens.shape[0], -1, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(x.shape)
        shuffled = F.pixel_shuffle(self.up(x), 2)
        return {"mean": x.mean((2, 3)), "maps": (shuffled, F.interpolate(shuffled, scale_factor=2.0, mode="bilinear"), None)}


NETS = {"residual": (Residual, 3), "grouped": (Grouped, 4), "attention": (Attention, 3)}


@dataclass
class GraphLike:
    """A graph with all that a backend needs."""

    module: nn.Module
    example_inputs: tuple[Any, ...]


def op_counts(path: Path) -> dict[str, int]:
    names = [node.op_type for node in onnx.load(path).graph.node]
    return {name: names.count(name) for name in names}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("net", NETS)
def test_export_gives_torch_numbers_at_every_batch_and_keeps_batch_norms(net: str, batch: int, tmp_path: Path) -> None:
    build, channels = NETS[net]
    module = fx.symbolic_trace(randomise(build()))
    export = export_onnx(GraphLike(module, (torch.randn(batch, channels, 16, 16),)), tmp_path / "net.onnx")
    assert (export.exporter, export.opset, export.dynamic_batch, export.note) == ("torchscript", 17, True, "")
    assert export.max_error is not None
    assert export.max_error < 1e-5
    assert export.bytes == export.path.stat().st_size
    assert op_counts(export.path)["BatchNormalization"] == sum(isinstance(m, nn.BatchNorm2d) for m in module.modules())
    onnx_run, torch_run = OnnxSession(export.path, threads=1), TorchSession(module, torch.randn(batch, channels, 16, 16))
    for size in (1, 2, 5):
        x = np.random.default_rng(size).standard_normal((size, channels, 16, 16)).astype(np.float32)
        got, expected = onnx_run.run(x), torch_run.run(x)
        assert len(got) == len(expected)
        for a, b in zip(got, expected, strict=True):
            assert a.shape == b.shape
            assert np.abs(a - b).max() <= 1e-4
    assert [spec.shape for spec in onnx_run.outputs] == [spec.shape for spec in torch_run.outputs]


def test_dynamo_exporter_keeps_batch_norms_too(tmp_path: Path) -> None:
    export = export_onnx(randomise(Residual()), tmp_path / "net.onnx", example_inputs=torch.randn(1, 3, 16, 16), exporter="dynamo")
    assert (export.exporter, export.opset) == ("dynamo", 18)
    assert op_counts(export.path)["BatchNormalization"] == 5
    assert OnnxSession(export.path).inputs[0].shape == (None, 3, 16, 16)


def test_what_one_exporter_cannot_the_other_does_and_the_record_says_so(tmp_path: Path) -> None:
    class Fourier(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fft.rfft(x).real

    export = export_onnx(Fourier(), tmp_path / "net.onnx", example_inputs=torch.randn(2, 4, 8))
    assert export.exporter == "dynamo"
    assert "aten::fft_rfft" in export.note


def test_training_flags_and_parameters_are_left_as_they_were(tmp_path: Path) -> None:
    module = randomise(Residual()).train()
    module.stem.eval()
    flags, state = [m.training for m in module.modules()], {k: v.clone() for k, v in module.state_dict().items()}
    export_onnx(module, tmp_path / "net.onnx", example_inputs=torch.randn(2, 3, 8, 8))
    TorchSession(module, torch.randn(2, 3, 8, 8)).run(np.zeros((2, 3, 8, 8), np.float32))
    assert [m.training for m in module.modules()] == flags
    assert all(torch.equal(state[k], v) for k, v in module.state_dict().items())
    with evaluating(module):
        assert not any(m.training for m in module.modules())
        assert not torch.is_grad_enabled()
    assert [m.training for m in module.modules()] == flags


def test_names_are_the_modules_own_and_every_parameter_has_its_initializer(tmp_path: Path) -> None:
    module = Residual()  # batch norms as initialised: equal numbers everywhere, yet nothing is tied
    export = export_onnx(module, tmp_path / "net.onnx", example_inputs=torch.randn(1, 3, 8, 8), metadata={"irtool": "test"})
    model = onnx.load(export.path)
    expected = {k for k in module.state_dict() if not k.endswith("num_batches_tracked")}
    assert {t.name for t in model.graph.initializer} == expected
    assert "/stem/Conv" in {node.name for node in model.graph.node}
    assert "Identity" not in op_counts(export.path)
    assert {p.key: p.value for p in model.metadata_props} == {"irtool": "test"}
    assert b"irtool_inner" not in export.path.read_bytes()
    assert __file__.encode() not in export.path.read_bytes()


def test_tied_weights_stay_one_initializer(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    module[1].weight = module[0].weight
    export = export_onnx(module, tmp_path / "net.onnx", example_inputs=torch.randn(2, 6))
    assert sorted(t.name for t in onnx.load(export.path).graph.initializer) == ["0.bias", "0.weight", "1.bias"]


def test_export_is_the_same_twice(tmp_path: Path) -> None:
    module = randomise(Grouped())
    for name in ("a", "b"):
        export_onnx(module, tmp_path / f"{name}.onnx", example_inputs=torch.randn(1, 4, 8, 8))
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_names_of_nested_inputs_and_outputs(tmp_path: Path) -> None:
    class Nested(nn.Module):
        def forward(self, image: torch.Tensor, extra: dict[str, Any], scale: float) -> dict[str, Any]:
            low, high = extra["pair"]
            return {"sum": image + low * scale, "rest": [high - image, (image, 3)]}

    inputs = (torch.randn(2, 3), {"pair": (torch.randn(2, 3), torch.randn(2, 3))}, 2.0)
    export = export_onnx(Nested(), tmp_path / "net.onnx", example_inputs=inputs)
    assert export.input_names == ("image", "extra_pair_0", "extra_pair_1")
    assert export.output_names == ("sum", "rest_0", "rest_1_0")
    arrays = sample_inputs(OnnxSession(export.path).inputs, batch=4)
    got = OnnxSession(export.path).run(*arrays)
    assert np.allclose(got[0], arrays[0] + 2 * arrays[1], atol=1e-6)
    assert np.array_equal(got[2], arrays[0])
    renamed = export_onnx(nn.ReLU(), tmp_path / "r.onnx", example_inputs=torch.randn(1, 3), input_names=["x"], output_names=["y"])
    assert [spec.name for spec in (*OnnxSession(renamed.path).inputs, *OnnxSession(renamed.path).outputs)] == ["x", "y"]


def test_weights_beyond_the_limit_go_beside_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "INLINE_LIMIT", 1000)
    module = nn.Linear(32, 64)
    export = export_onnx(module, tmp_path / "big.onnx", example_inputs=torch.randn(2, 32))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big.onnx", "big.onnx.data"]
    assert export.bytes == sum(p.stat().st_size for p in tmp_path.iterdir()) > 64 * 32 * 4
    x = np.ones((3, 32), np.float32)
    assert np.abs(OnnxSession(export.path).run(x)[0] - TorchSession(module, torch.ones(1, 32)).run(x)[0]).max() < 1e-5
    (tmp_path / "big.onnx.data").unlink()
    with pytest.raises(FileError, match=r"weights of 'weight' are missing.*Put it beside the model"):
        OnnxSession(export.path)


def test_exporting_shows_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_onnx(randomise(Grouped()), tmp_path / "net.onnx", example_inputs=torch.randn(1, 4, 8, 8))
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == 0


# --- refusals -------------------------------------------------------------------------------------------------------


def test_an_operator_without_onnx_form_is_named(tmp_path: Path) -> None:
    class Eigen(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvals(x).real

    with pytest.raises(ExportError, match=r"operator aten::linalg_eigvals has no ONNX form.*Replace it"):
        export_onnx(Eigen(), tmp_path / "net.onnx", example_inputs=torch.randn(2, 4, 4))
    assert list(tmp_path.iterdir()) == []


class FixedBatch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(2, 16) * 2.0


def test_a_batch_written_as_a_number_needs_a_fixed_batch(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no other batch size.*dynamic_batch=False"):
        export_onnx(FixedBatch(), tmp_path / "net.onnx", example_inputs=torch.randn(2, 4, 4))
    export = export_onnx(FixedBatch(), tmp_path / "net.onnx", example_inputs=torch.randn(2, 4, 4), dynamic_batch=False)
    assert not export.dynamic_batch
    session = OnnxSession(export.path)
    assert session.inputs == (TensorSpec("input", (2, 4, 4), "float32"),)
    with pytest.raises(BackendError, match=r"cannot be float32 3x4x4.*float32 2x4x4"):
        session.run(np.zeros((3, 4, 4), np.float32))


def test_an_exporter_that_freezes_the_batch_is_found_out(tmp_path: Path) -> None:
    class Frozen(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(int(x.shape[0]), -1) * 2.0

    with pytest.raises(ExportError, match=r"torchscript failed: .*shape.*dynamic_batch=False"):
        export_onnx(Frozen(), tmp_path / "net.onnx", example_inputs=torch.randn(2, 4, 4), exporter="torchscript")


def test_a_wrong_file_is_never_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("irtool.engines.onnxruntime.verify.TOLERANCE", -1.0)
    (tmp_path / "net.onnx").write_bytes(b"the file of yesterday")
    with pytest.raises(ExportError, match="numbers differ from torch's"):
        export_onnx(nn.ReLU(), tmp_path / "net.onnx", example_inputs=torch.randn(2, 4))
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"the file of yesterday"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 3}, "opset=3.*Choose 11 to 26"),
        ({"exporter": "magic"}, "exporter='magic'.*auto, torchscript or dynamo"),
        ({"input_names": ["a", "b"]}, r"input_names=\['a', 'b'\].*Give 1 different names"),
        ({"output_names": [""]}, "output_names.*Give 1 different names"),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        export_onnx(nn.ReLU(), tmp_path / "net.onnx", example_inputs=torch.randn(2, 4), **options)


def test_inputs_that_cannot_work(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"no example input.*Pass example_inputs"):
        export_onnx(nn.ReLU(), tmp_path / "net.onnx")
    with pytest.raises(ExportError, match=r"fails on its example inputs.*Give inputs that it takes"):
        export_onnx(nn.Conv2d(3, 4, 3), tmp_path / "net.onnx", example_inputs=torch.randn(2, 5, 8, 8))
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(FileError, match="Choose another --out"):
        export_onnx(nn.ReLU(), tmp_path / "file" / "net.onnx", example_inputs=torch.randn(2, 4))


# --- agreement and latency ------------------------------------------------------------------------------------------


def test_a_number_of_outputs_that_hangs_on_the_batch_is_told(tmp_path: Path) -> None:
    class Listed(nn.Module):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [image.mean(0) for image in x]

    with pytest.raises(ExportError, match=r"hangs on the batch: 1 at the example's, 2 at twice that.*dynamic_batch=False"):
        export_onnx(Listed(), tmp_path / "net.onnx", example_inputs=torch.rand(1, 3, 4, 4))
    assert not list(tmp_path.iterdir())
    export_onnx(Listed(), tmp_path / "net.onnx", example_inputs=torch.rand(1, 3, 4, 4), dynamic_batch=False)


def test_what_an_exporter_says_is_its_cause_and_plain(tmp_path: Path) -> None:
    """torch's exporter begins with a guide to its own steps, in colours; what fails stands at the end of it."""

    class Decides(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if int(x.abs().sum() * 1000) % 2 else x * 3

    with pytest.raises(ExportError) as caught:
        export_onnx(Decides(), tmp_path / "net.onnx", example_inputs=torch.rand(1, 3, 4, 4), exporter="dynamo")
    assert "\x1b" not in str(caught.value)
    assert "This is step" not in str(caught.value)
    assert "data-dependent" in str(caught.value)
