"""MNN export and sessions against onnxruntime and torch in numbers."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from random_norms import randomise
from torch import fx, nn

pytest.importorskip("MNN", reason="MNN is not installed")

from irtool.engines import MnnSession, OnnxSession, TorchSession, export_mnn, export_onnx, latency_pairs
from irtool.engines.agreement import relative_error
from irtool.engines.mnn import export as mnn_export
from irtool.engines.mnn import process as mnn_process
from irtool.engines.mnn.process import meaning
from irtool.engines.mnn.rewriting import rewrite as mnn_rewrite
from irtool.engines.table import ENGINES
from irtool.errors import BackendError, ExportError, FileError, OptionError
from irtool.workflows.equality.chain import engine_link


class Signature(nn.Module):
    """A slimmed pre-activation network's parts: norm, selection of channels, convolutions, an add; and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.register_buffer("kept", torch.tensor([1, 2, 6, 7, 9, 12, 15]))
        self.inner, self.inner_norm = nn.Conv2d(7, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.outer, self.head = nn.Conv2d(5, 16, 1, bias=False), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.stem(x)
        y = torch.index_select(torch.relu(self.norm(x)), 1, self.kept)
        x = x + self.outer(torch.relu(self.inner_norm(self.inner(y))))
        return self.head(x.mean((2, 3))), x


class Movement(nn.Module):
    """Grouped, depthwise and transposed convolution, channel shuffle, unequal split, chunk, pixel shuffle, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.paired, self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16)
        self.qkv, self.up = nn.Linear(16, 48), nn.ConvTranspose2d(4, 6, 2, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.grouped(x)))
        first, second = x.split([5, 11], dim=1)
        x = torch.cat([second, first], dim=1)
        n, c, h, w = x.size(0), x.size(1), x.size(2), x.size(3)
        x = x.view(n, 4, c // 4, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
        a, b = nn.functional.hardswish(self.depthwise(self.paired(x))).chunk(2, dim=1)
        x = torch.cat([nn.functional.gelu(a), torch.sigmoid(b)], dim=1)
        tokens = self.qkv(x.flatten(2).transpose(1, 2))
        q, k, v = tokens.reshape(tokens.shape[0], -1, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + nn.functional.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(x.shape)
        return self.up(nn.functional.pixel_shuffle(x, 2))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path, Path]:
    """The signature network as a module, an ONNX file and an MNN file."""
    folder = tmp_path_factory.mktemp("mnn")
    module = fx.symbolic_trace(randomise(Signature()))
    export_onnx(module, folder / "net.onnx", example_inputs=torch.randn(1, 3, 12, 12), output_names=["logits", "features"])
    export_mnn(folder / "net.onnx", folder / "net.mnn")
    return module, folder / "net.onnx", folder / "net.mnn"


@pytest.mark.parametrize("net", [Signature, Movement])
def test_three_engines_agree_at_every_batch(net: type[nn.Module], tmp_path: Path) -> None:
    module, example = fx.symbolic_trace(randomise(net())), torch.randn(1, 3, 16, 16)
    export_onnx(module, tmp_path / "net.onnx", example_inputs=example)
    export = export_mnn(tmp_path / "net.onnx", tmp_path / "net.mnn")
    assert export.bytes == export.path.stat().st_size
    assert export.max_error is not None
    assert export.max_error < 1e-4
    sessions = [TorchSession(module, example), OnnxSession(tmp_path / "net.onnx"), MnnSession(tmp_path / "net.mnn", threads=2)]
    assert len({session.inputs for session in sessions}) == 1
    assert len({tuple(spec.shape for spec in session.outputs) for session in sessions}) == 1
    for size in (1, 5, 2, 5):  # back and forth: MNN plans anew
        x = np.random.default_rng(size).standard_normal((size, 3, 16, 16)).astype(np.float32)
        expected, by_onnx, by_mnn = (session.run(x) for session in sessions)
        assert len(expected) == len(by_onnx) == len(by_mnn)
        for a, b, c in zip(expected, by_onnx, by_mnn, strict=True):
            assert a.shape == b.shape == c.shape
            assert np.abs(a - b).max() <= 1e-4
            assert np.abs(a - c).max() <= 1e-3


def test_outputs_come_by_name_and_are_copies(written: tuple[nn.Module, Path, Path]) -> None:
    session = MnnSession(written[2])
    assert [spec.name for spec in session.inputs] == ["input"]
    assert [str(spec) for spec in session.outputs] == ["logits: float32 Nx10", "features: float32 Nx16x12x12"]
    first = session.run(np.ones((1, 3, 12, 12), np.float32))
    kept = [array.copy() for array in first]
    session.run(np.full((1, 3, 12, 12), 7.0, np.float32))
    for array, copy in zip(first, kept, strict=True):
        assert np.array_equal(array, copy)


def test_smaller_files_say_how_far_they_are_off(written: tuple[nn.Module, Path, Path], tmp_path: Path) -> None:
    module = randomise(nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3)))
    export_onnx(module, tmp_path / "net.onnx", example_inputs=torch.randn(1, 3, 12, 12))
    plain = export_mnn(tmp_path / "net.onnx", tmp_path / "plain.mnn")
    half = export_mnn(tmp_path / "net.onnx", tmp_path / "half.mnn", fp16=True)
    eight = export_mnn(tmp_path / "net.onnx", tmp_path / "eight.mnn", weight_bits=8)
    assert plain.bytes > 1.8 * half.bytes > 3.0 * eight.bytes
    errors = [export.max_error for export in (plain, half, eight)]
    assert all(error is not None for error in errors)
    assert errors == sorted(errors)  # type: ignore[type-var]
    assert errors[2] < 0.05  # type: ignore[operator]


def test_latency_of_two_engines_is_comparable(written: tuple[nn.Module, Path, Path]) -> None:
    x = np.zeros((1, 3, 12, 12), np.float32)
    result = latency_pairs([OnnxSession(written[1], threads=1), MnnSession(written[2], threads=1)], [x], runs=20)
    assert all(0.0 < entry.p10_ms <= entry.median_ms <= entry.p90_ms for entry in result.latencies)
    assert [entry.runs for entry in result.latencies] == [20, 20]
    assert result.ratios[0] == 1.0
    assert 0.0 < result.ratios[1] < float("inf")  # how fast is no test's business


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="this system does not list a process's threads in /proc")
def test_a_session_has_the_threads_that_it_is_asked_for(written: tuple[nn.Module, Path, Path]) -> None:
    """MNN's threads wait by spinning: with more of them than asked for, a busy machine takes a hundred times as long."""
    script = (
        "import os, numpy as np\nfrom irtool.engines import MnnSession\nimport torch\ntorch.set_num_threads(1)\n"
        "def threads(): return len(os.listdir('/proc/self/task'))\n"
        f"before = threads()\nsession = MnnSession({str(written[2])!r}, 1)\n"
        "session.run(np.zeros((2, 3, 12, 12), np.float32))\nprint(threads() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "0"


def test_nothing_is_shown_and_the_tools_package_is_not_touched(written: tuple[nn.Module, Path, Path], tmp_path: Path) -> None:
    """In a fresh process: MNN prints when it is first imported, and its tools install software when imported."""
    script = (
        "import sys, numpy as np\n"
        "from irtool.engines import MnnSession, export_mnn\n"
        f"export_mnn({str(written[1])!r}, {str(tmp_path / 'x.mnn')!r})\n"
        f"MnnSession({str(tmp_path / 'x.mnn')!r}).run(np.zeros((2, 3, 12, 12), np.float32))\n"
        "assert 'MNN' in sys.modules and not [m for m in sys.modules if m.startswith('MNN.tools')]\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    child = Path(mnn_export.__file__).with_name("child.py").read_text(encoding="utf-8")
    assert "import MNN.tools" not in child
    assert "from MNN.tools" not in child


# --- refusals -------------------------------------------------------------------------------------------------------


def test_session_refuses_bad_files(written: tuple[nn.Module, Path, Path], tmp_path: Path) -> None:
    good = written[2].read_bytes()
    (tmp_path / "empty.mnn").touch()
    (tmp_path / "cut.mnn").write_bytes(good[: len(good) // 2])
    (tmp_path / "short.mnn").write_bytes(good[:7])
    (tmp_path / "onnx.mnn").write_bytes(written[1].read_bytes())
    (tmp_path / "noise.mnn").write_bytes(np.random.default_rng(0).bytes(5000))
    foreign = "not an MNN model, or a truncated one.*Export it again with export_mnn"
    for name, message in {
        "missing.mnn": "no such file.*Give the path",
        "empty.mnn": "empty.*Write it again",
        "cut.mnn": foreign,
        "short.mnn": foreign,
        "onnx.mnn": foreign,
        "noise.mnn": foreign,
    }.items():
        with pytest.raises(FileError, match=message):
            MnnSession(tmp_path / name)


def test_probe_survives_a_file_that_ends_the_process(written: tuple[nn.Module, Path, Path], tmp_path: Path) -> None:
    """Single bits damaged until one makes MNN fail in the child; the session must then refuse the file and live on."""
    good, damaged = written[2].read_bytes(), tmp_path / "damaged.mnn"
    for position in range(64, len(good), len(good) // 40):
        damaged.write_bytes(good[:position] + bytes([good[position] ^ 0x10]) + good[position + 1 :])
        if mnn_process.in_child(["probe", str(damaged)], tmp_path, 60.0)[0]:
            break
    with pytest.raises(FileError, match=r"MNN (died with signal \d+|failed) on this file: .*It is damaged: export it again"):
        MnnSession(damaged, probe=True)
    assert MnnSession(written[2], probe=True).run(np.zeros((1, 3, 12, 12), np.float32))[0].shape == (1, 10)


def test_session_refuses_bad_arrays(written: tuple[nn.Module, Path, Path]) -> None:
    session, good = MnnSession(written[2]), np.zeros((2, 3, 12, 12), np.float32)
    for arrays, message in (
        ((good, good), "2 arrays for 1 inputs.*input: float32 Nx3x12x12"),
        ((good.astype(np.float16),), "cannot be float16.*float32 Nx3x12x12"),
        ((good[..., :8],), "cannot be float32 2x3x12x8"),
        ((good.tolist(),), "a list, not a numpy array"),
    ):
        with pytest.raises(BackendError, match=message):
            session.run(*arrays)
    assert session.run(good)[0].shape == (2, 10)  # and it still works


def test_a_batch_that_is_a_number_in_the_graph_is_refused_not_garbled(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x.view(2, 3, 16)) * 2.0

    export_onnx(Fixed(), tmp_path / "net.onnx", example_inputs=torch.randn(2, 3, 4, 4), dynamic_batch=False)
    session = MnnSession(export_mnn(tmp_path / "net.onnx", tmp_path / "net.mnn").path)
    x = np.ones((2, 3, 4, 4), np.float32)
    assert np.array_equal(session.run(x)[0], np.full((2, 3, 16), 2.0))
    with pytest.raises(BackendError, match=r"running failed.*a batch written into the graph"):
        session.run(x[:1])
    assert np.array_equal(session.run(x)[0], np.full((2, 3, 16), 2.0))
    assert capfd.readouterr() == ("", "")


def with_op(op: str, domain: str, path: Path) -> Path:
    value, opset = onnx.helper.make_tensor_value_info, onnx.helper.make_opsetid
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, ["x"], ["y"], domain=domain)], "g", [value("x", 1, [1, 3])], [value("y", 1, [1, 3])]
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset("", 17), *([opset(domain, 1)] if domain else [])], ir_version=8), path)
    return path


def test_an_operator_that_mnn_lacks_is_named(tmp_path: Path) -> None:
    source = with_op("Foo", "my.ops", tmp_path / "net.onnx")
    with pytest.raises(ExportError, match=r"wrote no file: These Op Not Support: ONNX::Foo.*Replace the operator"):
        export_mnn(source, tmp_path / "net.mnn")
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_conversion_refuses_bad_files(written: tuple[nn.Module, Path, Path], tmp_path: Path) -> None:
    (tmp_path / "cut.onnx").write_bytes(written[1].read_bytes()[:900])
    model = onnx.load(written[1])
    del model.opset_import[:]
    (tmp_path / "old.onnx").write_bytes(model.SerializeToString())
    target = tmp_path / "net.mnn"
    target.write_bytes(b"the file of yesterday")
    cases: dict[str, tuple[type[Exception], str]] = {
        "missing.onnx": (FileError, "no such file"),
        "cut.onnx": (FileError, "not an ONNX model, or a truncated one.*Export it again"),
        "old.onnx": (ExportError, "names no operator set.*Export it again"),
    }
    for name, (kind, message) in cases.items():
        with pytest.raises(kind, match=message):
            export_mnn(tmp_path / name, target)
    with pytest.raises(FileError, match="Choose another --out"):
        export_mnn(written[1], target / "below" / "a.mnn")
    assert target.read_bytes() == b"the file of yesterday"


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"weight_bits": 1}, OptionError, "weight_bits=1.*Choose 2 to 8"),
        ({"timeout": 0}, OptionError, "timeout=0.*positive"),
        ({"timeout": 0.001}, ExportError, "was stopped after 0.001 s"),
        ({"compression_params": "missing.bin"}, FileError, "missing.bin: no such file"),
    ],
)
def test_options_that_cannot_work(
    options: dict[str, Any], kind: type[Exception], message: str, written: tuple[nn.Module, Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(kind, match=message):
        export_mnn(written[1], tmp_path / "net.mnn", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_converter_that_dies_or_lies_is_found_out(
    written: tuple[nn.Module, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "child.py"
    monkeypatch.setattr(mnn_process, "_CHILD", child)
    for body, message in {
        "import os, signal; print('[10:00:00] :35: it was going well', flush=True); os.kill(os.getpid(), signal.SIGABRT)": "died with signal 6: it was going well",
        "print('Converted Success!')": "wrote no file: it said nothing",
        "raise SystemExit(3)": "failed: it said nothing",
    }.items():
        child.write_text(body)
        with pytest.raises(ExportError, match=message):
            export_mnn(written[1], tmp_path / "net.mnn")
    assert not (tmp_path / "net.mnn").exists()


def test_numbers_that_differ_are_an_error(written: tuple[nn.Module, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnn_export, "TOLERANCE", -1.0)
    with pytest.raises(ExportError, match=r"MNN's numbers differ from onnxruntime's by .*another opset"):
        export_mnn(written[1], tmp_path / "net.mnn")
    assert not (tmp_path / "net.mnn").exists()
    assert export_mnn(written[1], tmp_path / "net.mnn", verify=False).max_error is None


def test_softmax_of_old_files_keeps_its_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its default axis was 1 before opset 13; MNN's converter takes the last one, and a classifier's output becomes all ones."""
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Softmax", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [value("x", 1, [1, 5, 1, 1])], [value("y", 1, [1, 5, 1, 1])])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 9)], ir_version=6), tmp_path / "old.onnx")
    before = (tmp_path / "old.onnx").read_bytes()
    export = export_mnn(tmp_path / "old.onnx", tmp_path / "old.mnn")
    assert export.max_error is not None
    assert export.max_error < 1e-5
    assert (tmp_path / "old.onnx").read_bytes() == before
    monkeypatch.setattr(mnn_rewrite, "_defaults", lambda _model: False)
    with pytest.raises(ExportError, match="numbers differ"):  # the day that MNN is right, the mending can go
        export_mnn(tmp_path / "old.onnx", tmp_path / "old.mnn")


def test_the_line_that_matters_is_found() -> None:
    said = "The device supports: x\nStart to Convert\n[08:00:01] :35: Check failed: success ==> bad model\n[ERROR] Convert error, please check your file format.\n"
    assert meaning(said) == "Check failed: success ==> bad model"
    assert meaning("") == "it said nothing"


def test_a_temporary_folder_may_be_relative(written: tuple[nn.Module, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", ".")
    assert export_mnn(written[1], tmp_path / "net.mnn").max_error is not None
    assert [path.name for path in tmp_path.iterdir()] == ["net.mnn"]


def test_a_temporary_folder_that_something_removes(
    written: tuple[nn.Module, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "child.py"
    child.write_text("import os, shutil\nshutil.rmtree(os.getcwd())\nopen('in.npz')\n")
    monkeypatch.setattr(mnn_process, "_CHILD", child)
    with pytest.raises(FileError, match=r"temporary folder was removed while it was in use.*set TMPDIR"):
        export_mnn(written[1], tmp_path / "net.mnn")
    assert [path.name for path in tmp_path.iterdir()] == ["child.py"]


def test_convolutions_that_round_much_are_right_where_they_round_little(tmp_path: Path) -> None:
    """MNN's large Winograd tiles round two convolutions of 128 channels to 1.1e-3, more than what a converted file is allowed."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(), nn.Conv2d(128, 128, 3, padding=1)).eval()
    x = torch.randn(8, 128, 28, 28)
    export_onnx(net, tmp_path / "net.onnx", example_inputs=x[:1])
    found = export_mnn(tmp_path / "net.onnx", tmp_path / "net.mnn")
    assert found.max_error is not None
    assert found.max_error < 1e-5
    expected = OnnxSession(tmp_path / "net.onnx", 1).run(x.numpy())[0]
    exact = MnnSession(tmp_path / "net.mnn", 1, exact=True).run(x.numpy())[0]
    assert relative_error(exact, expected) < 1e-5
    link = engine_link(ENGINES["mnn"], tmp_path / "net.onnx", tmp_path / "net.mnn", (x,))
    assert link.ok
    plain = relative_error(MnnSession(tmp_path / "net.mnn", 1).run(x.numpy())[0], expected)
    assert (link.note != "") == (plain > ENGINES["mnn"].tolerance)
