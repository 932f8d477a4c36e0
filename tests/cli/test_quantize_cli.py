"""`irtool quantize` in process, on a small net trained for seconds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import irtool
from irtool.cli.main import run
from irtool.engines.engine import Engine
from irtool.engines.table import QUANTISING
from irtool.models import VGG
from irtool.train import fit, load_data
from irtool.workflows.quantize.judge import Score


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net, data = VGG(11, width=0.125), load_data("digits", limit=600, channels=3)
    fit(net, data, epochs=4, lr=0.05, batch_size=16, crop=0)
    path = tmp_path_factory.mktemp("net") / "net.safetensors"
    irtool.save(irtool.trace(net.eval(), torch.zeros(2, *data.preprocessing.input_shape)), path, preprocessing=data.preprocessing.to_dict())
    return path


@pytest.mark.parametrize("engine", QUANTISING.values(), ids=QUANTISING)
def test_quantize_writes_a_smaller_file_that_answers_alike(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], engine: Engine
) -> None:
    out = tmp_path / "int8"
    options = ["--calib", "digits", "--limit", "200", "--images", "64", "--runs", "3", "--max-drop", "2", "--engine", engine.name]
    assert run(["quantize", str(saved), "--out", str(out), *options]) == 0
    said = capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert report["float"]["accuracy"] > 0.6
    assert report["int8"]["accuracy"] >= report["float"]["accuracy"] - 0.02
    assert report["int8"]["bytes"] < 0.45 * report["float"]["bytes"]
    assert f"{100 * report['int8']['accuracy']:.2f} %" in said
    assert report["latency_ratio"] is None  # of three runs
    assert "its time is not measurable now" in said
    small = ["weights8", "weights4"] if engine.name == "mnn" else ["weights8"]
    assert [form["name"] for form in report["forms"]] == ["float", "half", *small, "int8"]
    assert {path.name for path in out.glob(f"*{engine.suffix}")} == {f"{form['name']}{engine.suffix}" for form in report["forms"]}
    fine = [form for form in report["forms"] if form["expected"] <= 0.02]
    assert report["recommended"] == min(fine, key=lambda form: form["bytes"])["name"]
    assert f"Use {report['recommended']}{engine.suffix}" in said
    layers = json.loads((out / "sensitivity.json").read_text())["layers"]
    assert len(layers) == {"mnn": 8}.get(engine.name, 9)
    assert ("its result is the model's, which 8 bits would round too much" in said) == (engine.name == "mnn")
    assert f"{len(layers)} of 9 layers in int8" in said
    assert [layer["sqnr_db"] for layer in layers] == sorted(layer["sqnr_db"] for layer in layers)
    assert (out / "sensitivity.png").stat().st_size > 1000
    steps = (out / "steps.txt").read_text().splitlines()
    assert [line for line in steps if line.startswith("quantise") and line.endswith("the model's input is float")] == [steps[1]]
    assert steps[0] in said
    assert len(report["steps"]) == int(steps[0].split(", ")[2].split()[0])
    x = load_data("digits", limit=20, channels=3).sample(8).numpy()
    both = [engine.session(out / f"{name}{engine.suffix}", 1).run(x)[0] for name in ("float", "int8")]
    assert (both[0].argmax(1) == both[1].argmax(1)).mean() >= 0.75
    assert _preprocessing(out, engine.kind) == report["preprocessing"] == irtool.read_info(saved).preprocessing


def _preprocessing(out: Path, kind: str) -> object:
    if kind == "mnn":
        return json.loads((out / "int8.json").read_text())["preprocessing"]
    held = {entry.key: entry.value for entry in onnx.load(str(out / "int8.onnx")).metadata_props}
    return json.loads(held["irtool.preprocessing"])


def test_an_onnx_file_and_a_folder_without_classes(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    irtool.export_onnx(irtool.load(saved), tmp_path / "net.onnx")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, image in enumerate(load_data("digits", limit=60, channels=3).train.batches([torch.arange(60)]).__next__().numpy()):
        Image.fromarray(np.broadcast_to(image[0], image.shape[1:])).convert("RGB").save(pictures / f"{number}.png")
    options = ["--calib", str(pictures), "--images", "32", "--runs", "3", "--max-drop", "50", "--no-sensitivity", "--equalise"]
    assert run(["quantize", str(tmp_path / "net.onnx"), "--out", str(tmp_path / "out"), *options]) == 0
    said = capsys.readouterr().out
    assert "agreement with float (28 images)" in said
    assert "100.00 %" in said


def test_a_drop_that_cannot_be_kept_writes_nothing(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("irtool.workflows.quantize.judge.Judge.expected_drop", lambda self, path: 0.8)
    options = ["--calib", "digits", "--limit", "60", "--images", "32", "--max-drop", "1"]
    assert run(["quantize", str(saved), "--out", str(tmp_path / "out"), *options]) == 1
    assert "int8 is expected to lose 80.00 points" in (said := capsys.readouterr().err)
    assert "a larger --max-drop" in said
    assert not (tmp_path / "out").exists()


def test_scored_images_choose_nothing_and_have_a_veto(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--calib", "digits", "--limit", "60", "--images", "32", "--max-drop", "1", "--runs", "1", "--no-sensitivity"]
    worse = Score(0.5, 0.03, 0.004)
    monkeypatch.setattr("irtool.workflows.quantize.judge.Judge.score", lambda self, path, task: worse)
    assert run(["quantize", str(saved), "--out", str(tmp_path / "out"), *options]) == 1
    assert "int8 loses 3.00 ± 0.40 points on images that chose nothing, more than the 1.00 allowed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    within = Score(0.5, 0.03, 0.011)  # it may be noise: it is told, and no layer goes to float for it
    monkeypatch.setattr("irtool.workflows.quantize.judge.Judge.score", lambda self, path, task: within)
    assert run(["quantize", str(saved), "--out", str(tmp_path / "out"), *options]) == 0
    assert "worse by 3.00 ± 1.10 points, not certainly more than the 1.00 allowed" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "report.json").read_text())["layers_in_float"] == []


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        (["--method", "best"], "Choose one of minmax"),
        (["--weight-bits", "9"], "Choose 2 to 8"),
        (["--activations", "uint8", "--engine", "mnn"], "MNN has int8 only"),
        (["--activations", "int4"], "Choose uint8 or int8"),
        (["--images", "0"], "at least one image"),
        (["--max-drop", "-1"], "a drop of 0 or more"),
        (["--calib", "nowhere"], "Give a folder"),
    ],
)
def test_bad_options_say_what_to_do(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], remedy: str
) -> None:
    assert run(["quantize", str(saved), "--calib", "digits", "--out", str(tmp_path / "out"), *options]) == 1
    said = capsys.readouterr().err
    assert remedy in said
    assert "Traceback" not in said


def test_a_file_that_is_cut_off_and_one_with_foreign_metadata(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = tmp_path / "whole.onnx"
    assert run(["export", str(saved), "--out", str(whole)]) == 0
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(whole.read_bytes()[:-100])
    model = onnx.load(str(whole))
    onnx.helper.set_model_props(model, {"irtool.preprocessing": "{"})
    onnx.save(model, str(whole))
    for path, remedy in ((cut, "get a whole copy of it"), (whole, "Remove the entry irtool.preprocessing")):
        capsys.readouterr()
        assert run(["quantize", str(path), "--calib", "digits", "--out", str(tmp_path / "out")]) == 1
        assert remedy in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("engine", QUANTISING)
def test_weights_only(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], engine: str) -> None:
    options = [
        "--calib",
        "digits",
        "--limit",
        "100",
        "--images",
        "16",
        "--runs",
        "3",
        "--weights-only",
        "--engine",
        engine,
        "--max-drop",
        "3",
    ]
    assert run(["quantize", str(saved), "--out", str(tmp_path / "light"), *options]) == 0
    report = json.loads((tmp_path / "light" / "report.json").read_text())
    said = capsys.readouterr().out
    assert f"Use {report['recommended']}" in said
    assert "8-bit weights alone the model is" in said
    names = [form["name"] for form in report["forms"]]
    assert names == (["float", "half", "weights4", "int8"] if engine == "mnn" else ["float", "half", "int8"])
    fine = [form for form in report["forms"] if form["expected"] <= 0.03]
    assert report["recommended"] == min(fine, key=lambda form: form["bytes"])["name"]
    assert report["int8"]["bytes"] < 0.45 * report["float"]["bytes"]


def test_an_old_file_with_a_batch_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Opset 11, weights made by ConstantOfShape and a batch of one written into a Reshape; names that the writer would choose too."""
    from onnx import TensorProto, helper, numpy_helper

    draw = np.random.default_rng(0)
    constants = {"w0": draw.normal(size=(4, 3, 3, 3)), "w1": draw.normal(size=(10, 16)), "n0": np.array([4, 4, 1, 1])}
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], "n0", pads=[1, 1, 1, 1], strides=[8, 8]),
        helper.make_node("ConstantOfShape", ["n0"], ["d0"], "q0", value=numpy_helper.from_array(np.array([0.5], np.float32))),
        helper.make_node("Conv", ["a", "d0"], ["b"], "n1"),
        helper.make_node("Reshape", ["b", "s"], ["c"], "n2"),
        helper.make_node("Gemm", ["c", "w1"], ["y"], "n3", transB=1),
    ]
    tensors = [numpy_helper.from_array(v.astype(np.int64 if k == "n0" else np.float32), k) for k, v in constants.items()]
    tensors.append(numpy_helper.from_array(np.array([1, 16], np.int64), "s"))
    graph = helper.make_graph(
        nodes,
        "old",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])],
        tensors,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6), str(tmp_path / "old.onnx"))
    (tmp_path / "pictures").mkdir()
    for number in range(12):
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / "pictures" / f"{number}.png")
    for engine in QUANTISING:
        options = ["--calib", str(tmp_path / "pictures"), "--images", "8", "--runs", "2", "--max-drop", "60", "--engine", engine]
        assert run(["quantize", str(tmp_path / "old.onnx"), "--out", str(tmp_path / engine), *options, "--no-sensitivity"]) == 0
        assert f"{3 - (engine == 'mnn')} of 3 layers in int8" in capsys.readouterr().out
