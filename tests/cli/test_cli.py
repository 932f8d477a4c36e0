"""The commands, in process, on a small VGG and scikit-learn's digits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from installed import ADDED, LINKS, OWN_LINKS
from onnx import numpy_helper

import irtool
from irtool.archive import load, read_info
from irtool.cli.main import run
from irtool.engines import MnnSession, OnnxExport, OnnxSession, export_onnx
from irtool.engines.table import ENGINES
from irtool.errors import IrtoolError
from irtool.train import Preprocessing
from irtool.workflows.compress.built import FILES
from irtool.workflows.loading.spec import ModelSpec
from irtool.workflows.loading.weights import read_weights

MODEL = "VGG:depth=11,width=0.0625"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights whose batch norms are not the identity."""
    torch.manual_seed(0)
    model = ModelSpec.parse(MODEL).build()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.dim() == 1:
            tensor.uniform_(0.5, 1.5) if "var" in name or "weight" in name else tensor.normal_(0, 0.3)
    path = tmp_path_factory.mktemp("weights") / "net.pth"
    torch.save({"state_dict": model.state_dict(), "published_accuracy": 0.5}, path)
    return path


OPTIONS = ["--data", "digits", "--limit", "60", "--ratio", "0.5", "--criterion", "bn_scale", "--runs", "3", "--ignore", "features.0"]


@pytest.fixture(scope="module")
def made(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one compress run, layers as they were sliced."""
    out = tmp_path_factory.mktemp("made") / "new" / "small"
    assert run(["compress", MODEL, "--weights", str(weights), *OPTIONS, "--no-reconstruct", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def refitted(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is refitted on the images, which is the default where there are some."""
    out = tmp_path_factory.mktemp("refitted") / "small"
    assert run(["compress", MODEL, "--weights", str(weights), *OPTIONS, "--out", str(out)]) == 0
    return out


def test_images_refit_every_layer_by_default_and_the_chain_holds(made: Path, refitted: Path, cli: Run) -> None:
    report, plain = (json.loads((folder / "report.json").read_text()) for folder in (refitted, made))
    assert [(link["name"], link["verdict"]) for link in report["chain"]][:4] == [
        ("model = traced", "holds"), ("masked = sliced", "holds"), ("masked = refitted", "holds"), ("sliced = folded", "holds"),
    ]  # fmt: skip
    assert (report["options"]["reconstruct"], plain["options"]["reconstruct"]) == (128, 0)
    assert any("layers refitted" in note for note in report["notes"])
    code, printed, _ = cli("verify", refitted)
    assert code == 0
    assert "masked = refitted" in printed


def test_verify_names_the_broken_link_of_a_refitted_model(refitted: Path, tmp_path: Path, cli: Run) -> None:
    other = shutil.copytree(refitted, tmp_path / "other")
    graph = load(other / "model.safetensors")
    graph.set_param("features.4.weight", 2 * graph.params["features.4.weight"].data)  # type: ignore[operator]
    irtool.save(graph, other / "model.safetensors")
    code, _, complaint = cli("verify", other)
    assert code == 1
    assert complaint.splitlines()[-1].startswith("folded = ONNX: differ by")


def test_without_images_layers_are_refitted_on_noise(tmp_path: Path, cli: Run) -> None:
    code, _, complaint = cli("compress", MODEL, "--input", "1x3x32x32", "--ratio", "0.3", "--runs", "1", "--out", tmp_path / "out")
    assert code == 0, complaint
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["options"]["noise"] is True
    assert any(note.startswith("no images: refitted on") for note in report["notes"])
    code, _, _ = cli("compress", MODEL, "--input", "1x3x32x32", "--no-reconstruct", "--runs", "1", "--out", tmp_path / "dropped")
    assert code == 0
    assert json.loads((tmp_path / "dropped" / "report.json").read_text())["options"]["noise"] is False


def test_compress_writes_all_files_and_nothing_else(made: Path) -> None:
    absent = {row.kind for row in ENGINES.values() if not row.installed} - {row.kind for row in ENGINES.values() if row.installed}
    assert sorted(file.name for file in made.iterdir()) == sorted(name for kind, name in FILES.items() if kind not in absent)
    assert [entry.name for entry in made.parent.iterdir()] == ["small"]


def test_the_report_says_what_the_files_are(made: Path) -> None:
    report = json.loads((made / "report.json").read_text())
    assert [link["name"] for link in report["chain"]] == [
        "model = traced", "masked = sliced", "sliced = stored", "sliced = folded", "sliced = folded", "folded = ONNX", *LINKS,
    ]  # fmt: skip
    assert all(link["ok"] for link in report["chain"])
    assert report["chain"][1]["relative"] <= 1e-9
    before, after = report["before"], report["after"]
    assert after["params"] < before["params"]
    assert after["macs"] < before["macs"]
    assert before["images"] == after["images"] == 60
    assert after["file_bytes"] == {kind: (made / FILES[kind]).stat().st_size for kind in ("model", "onnx", "mnn")}
    assert set(after["latency_ms"]) == set(report["ratios"]) == {"torch", "onnxruntime", *ADDED}
    assert Preprocessing.from_dict(report["preprocessing"]).input_shape == (3, 32, 32)
    assert report["classes"] == list("0123456789")


def test_the_written_models_agree_with_each_other(made: Path) -> None:
    images = torch.randn(3, 3, 32, 32)
    sliced = load(made / "model.safetensors")
    expected = sliced.run(images)
    for session in (OnnxSession(made / "model.onnx"), MnnSession(made / "model.mnn")):
        torch.testing.assert_close(torch.from_numpy(session.run(images.numpy())[0]), expected, rtol=1e-3, atol=1e-3)


def test_the_plan_that_is_written_gives_the_model_that_is_written(made: Path, weights: Path) -> None:
    model = ModelSpec.parse(MODEL).build()
    model.load_state_dict(read_weights(weights))
    graph = irtool.trace(model.eval(), torch.zeros(2, 3, 32, 32))
    again = irtool.prune(graph, irtool.Plan.from_json(made / "plan.json"))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.run(images), load(made / "model.safetensors").run(images))


def test_preprocessing_travels_with_the_model_and_the_onnx_file(made: Path) -> None:
    known = json.loads((made / "report.json").read_text())["preprocessing"]
    metadata = {entry.key: entry.value for entry in onnx.load(str(made / "model.onnx")).metadata_props}
    assert json.loads(metadata["irtool.preprocessing"]) == known
    assert read_info(made / "model.safetensors").preprocessing == known


def test_an_ignored_layer_stays_whole(made: Path) -> None:
    layers = {layer.name: layer for layer in irtool.Plan.from_json(made / "plan.json").layers}
    assert layers["features.0"].removed == ()
    assert any(layer.removed for layer in layers.values())


def test_files_of_other_names_stay_in_the_output_folder(made: Path, weights: Path, tmp_path: Path, cli: Run) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "plan.json").write_text("old")
    code, printed, _ = cli("compress", MODEL, "-w", weights, "-i", "2x3x32x32", "--runs", "2", "--ratio", "0.3", "-o", out)
    assert code == 0
    assert (out / "notes.txt").read_text() == "mine"
    assert json.loads((out / "plan.json").read_text())["ratio"] == 0.3
    assert "accuracy (" not in printed  # without data there is none
    assert "onnxruntime, ms" in printed


def test_compress_prints_the_plan_the_chain_and_the_table(weights: Path, tmp_path: Path, cli: Run) -> None:
    code, printed, _ = cli("compress", MODEL, "-w", weights, "-i", "2x3x32x32", "--runs", "2", "-o", tmp_path / "o", "--constants", "drop")
    assert code == 0
    for expected in (
        "is a graph output",
        "masked = sliced  float64",
        "ONNX = MNN",
        "parameters",
        "MACs",
        "ONNX file",
        "torch, ms",
        "mnn, ms",
    ):
        assert expected in printed
    assert "BROKEN" not in printed


def test_verify_goes_through_the_whole_chain_again(made: Path, cli: Run) -> None:
    code, printed, _ = cli("verify", made)
    assert code == 0
    assert printed.count("holds") == 6 + len(OWN_LINKS)


@pytest.mark.parametrize("lost", ["model.safetensors", "plan.json", "model.onnx"])
def test_verify_names_what_a_folder_lacks_before_it_compares(lost: str, made: Path, tmp_path: Path, cli: Run) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made, folder)
    (folder / lost).unlink()
    code, _, complaint = cli("verify", folder)
    assert code == 1
    assert complaint == f"{folder}: {lost} is gone. Run irtool compress again.\n"


def test_verify_without_the_original_says_what_it_leaves_out(made: Path, tmp_path: Path, cli: Run) -> None:
    moved = shutil.copytree(made, tmp_path / "moved")
    report = json.loads((moved / "report.json").read_text())
    report["source"]["weights"] = str(tmp_path / "gone.pth")
    (moved / "report.json").write_text(json.dumps(report))
    code, printed, _ = cli("verify", moved)
    assert code == 0
    assert "masked = sliced is left out" in printed
    assert printed.count("holds") == 3 + len(OWN_LINKS)


def test_verify_tells_a_changed_checkpoint_from_a_broken_link(made: Path, weights: Path, tmp_path: Path, cli: Run) -> None:
    state = read_weights(weights)
    state["features.0.weight"] += 1
    torch.save(state, tmp_path / "other.pth")
    code, _, complaint = cli("verify", made, "--weights", tmp_path / "other.pth")
    assert code == 1
    assert "its weights are not those that were compressed. Give --weights FILE" in complaint


def test_a_batch_written_into_the_model_stays_fixed_and_is_said(tmp_path: Path, cli: Run) -> None:
    (tmp_path / "baked.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.a = nn.Conv2d(3, 8, 3)\n        self.b = nn.Linear(8 * 36, 5)\n"
        "    def forward(self, x):\n        return self.b(self.a(x).relu().view(4, -1))\n"
    )
    net = f"{tmp_path / 'baked.py'}:Net"  # not the name of an emoji
    code, printed, _ = cli("compress", net, "-i", "4x3x8x8", "--runs", "2", "-o", tmp_path / "out")
    assert code == 0
    assert "the batch size is written into the model" in printed
    assert f"{net}: " in printed
    assert OnnxSession(tmp_path / "out" / "model.onnx").inputs[0].shape == (4, 3, 8, 8)


@pytest.mark.parametrize(
    ("file", "link", "node"), [("model.onnx", "folded = ONNX", "features.4"), ("model.safetensors", "sliced = stored", "features")]
)
def test_verify_names_the_broken_link_and_the_first_node(made: Path, tmp_path: Path, cli: Run, file: str, link: str, node: str) -> None:
    other = shutil.copytree(made, tmp_path / "other")
    if file == "model.onnx":
        _spoil(other / file, "features.4.weight")
    else:
        graph = load(other / file)
        graph.set_param("features.4.weight", 2 * graph.params["features.4.weight"].data)  # type: ignore[operator]
        irtool.save(graph, other / file)
    code, printed, complaint = cli("verify", other)
    assert code == 1
    assert "BROKEN" in printed
    assert complaint.splitlines()[-1].startswith(f"{link}: differ by")
    assert f"first diverging node: {node}" in complaint


def test_verify_compares_two_files(made: Path, tmp_path: Path, cli: Run) -> None:
    assert cli("verify", made / "model.onnx", made / "model.mnn")[0] == 0
    assert cli("verify", made / "model.safetensors", made / "model.onnx")[0] == 0
    spoilt = shutil.copy(made / "model.onnx", tmp_path / "spoilt.onnx")
    _spoil(Path(spoilt), "features.4.weight")
    code, _, complaint = cli("verify", spoilt, made / "model.mnn")
    assert code == 1
    assert "ONNX = MNN: differ by" in complaint
    assert "first diverging node: /" in complaint


def _spoil(path: Path, name: str) -> None:
    model = onnx.load(str(path))
    for entry in model.graph.initializer:
        if entry.name == name:
            entry.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(entry) * 1.5, name))
    onnx.save(model, str(path))


def test_a_broken_link_writes_nothing(weights: Path, tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(graph: irtool.FxGraph, path: Path, **options: Any) -> OnnxExport:
        done = export_onnx(graph, path, **options)
        _spoil(path, "features.4.weight")
        return done

    monkeypatch.setattr("irtool.workflows.compress.built.export_onnx", spoilt)
    code, printed, complaint = cli("compress", MODEL, "-w", weights, "-i", "2x3x32x32", "-o", tmp_path / "deep" / "out")
    assert code == 1
    assert "folded = ONNX: differ by" in complaint
    assert "first diverging node: features.4" in complaint
    assert "parameters" not in printed
    assert list(tmp_path.iterdir()) == []


def test_inspect_says_what_is_pinned_why_and_where(cli: Run) -> None:
    code, printed, _ = cli("inspect", MODEL, "--input", "2x3x32x32", "--costs", "--text")
    assert code == 0
    assert "is a graph output (at output)" in printed
    assert "read by: symbolic" in printed
    assert "%features.0:2x4x32x32 = Conv(" in printed
    rows = json.loads(cli("inspect", MODEL, "--input", "2x3x32x32", "--json")[1])
    assert {(row["layer"], row["channels"], row["prunable"]) for row in rows["layers"]} >= {("features.0", 4, 4), ("classifier", 10, 0)}
    assert rows["cost"]["params"] == sum(p.numel() for p in ModelSpec.parse(MODEL).build().parameters())


def test_inspect_names_an_unknown_operator(tmp_path: Path, cli: Run) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\nclass Net(nn.Module):\n    def __init__(self, width):\n        super().__init__()\n"
        "        self.a = nn.Conv2d(3, width, 1)\n        self.b = nn.Conv2d(width, 2, 1)\n"
        "    def forward(self, x):\n        return self.b(torch.cummax(self.a(x), 1)[0])\n"
    )
    code, printed, _ = cli("inspect", f"{tmp_path / 'net.py'}:Net:width=6", "-i", "1x3x4x4")
    assert code == 0
    assert "cummax" in printed.split("unknown to irtool:")[1]
    assert "a          Conv" in printed or "a      Conv" in printed


def test_diff_has_the_exit_codes_of_diff(made: Path, weights: Path, cli: Run) -> None:
    same = cli("diff", made, made / "model.safetensors")
    assert (same[0], same[1].splitlines()[0]) == (0, "no difference")
    code, printed, _ = cli("diff", MODEL, made, "--weights-a", weights)
    assert code == 1
    assert "channels" in printed
    assert json.loads(cli("diff", MODEL, made, "--json")[1])["same"] is False
    code, _, complaint = cli("diff", made, "gone.safetensors")
    assert (code, len(complaint.splitlines())) == (2, 1)


def test_export_writes_both_files_and_converts_onnx(weights: Path, tmp_path: Path, cli: Run) -> None:
    onnx_file, mnn_file, again = (tmp_path / "files" / name for name in ("net.onnx", "net.mnn", "again.mnn"))
    code, printed, _ = cli("export", MODEL, "-w", weights, "-i", "2x3x32x32", "--out", onnx_file, "--out", mnn_file)
    assert code == 0
    assert "folded = ONNX" in printed
    assert cli("export", onnx_file, "--out", again)[0] == 0
    assert sorted(file.name for file in onnx_file.parent.iterdir()) == ["again.mnn", "net.mnn", "net.onnx"]
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(str(onnx_file)).graph.node}


def test_demo_shows_the_whole_job(tmp_path: Path, cli: Run) -> None:
    code, printed, _ = cli("demo", "--quick", "--out", tmp_path / "demo")
    assert code == 0
    assert printed.count("holds") == 6 + len(LINKS)
    assert "[/]" not in printed
    for expected in ("accuracy (359 images)", "absorb 0.5", "drop 0.7", "absorb 0.7", "mnn, ms"):
        assert expected in printed
    assert sorted(folder.name for folder in (tmp_path / "demo").iterdir()) == ["absorb-0.5", "absorb-0.7", "drop-0.7"]
    reports = {
        name: json.loads((tmp_path / "demo" / name / "report.json").read_text()) for name in ("drop-0.7", "absorb-0.7", "absorb-0.5")
    }
    assert reports["absorb-0.5"]["after"]["accuracy"] > 0.9
    assert reports["absorb-0.7"]["after"]["accuracy"] > reports["drop-0.7"]["after"]["accuracy"] + 0.2


def test_every_message_of_the_errors_module_is_an_irtool_error() -> None:
    from irtool import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert all(issubclass(kind, IrtoolError) for kind in kinds)
