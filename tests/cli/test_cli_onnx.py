"""The commands on .onnx files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from installed import ADDED, LINKS, OWN_LINKS
from onnx import numpy_helper
from onnx_nets import Net

from irtool.cli.main import run
from irtool.engines import export_mnn
from irtool.engines.table import ENGINES
from irtool.workflows.equality.chain import engine_link

Run = Callable[..., tuple[int, str, str]]


def digits_net(batch: int | str = "N") -> onnx.ModelProto:
    """A classifier of 16x16 images with a residual, a batch norm to fold and one that stays."""
    n = Net(13, (batch, 3, 16, 16))
    a = n.cbr("x", 3, 12)
    b = n.op("Relu", n.op("Add", a, n.bn(n.conv(n.cbr(a, 12, 12), 12, 12, bias=False), 12)))
    return n.model(n.head(n.cbr(b, 12, 16), 16, 10))


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    onnx.save(digits_net(), str(path))
    return path


@pytest.fixture(scope="module")
def made(net: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one compress run with images."""
    out = tmp_path_factory.mktemp("made") / "small"
    options = ["--data", "digits", "--limit", "40", "--ratio", "0.5", "--runs", "2", "--calibrate", "16"]
    assert run(["compress", str(net), *options, "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize("batch", ["N", 3])
def test_a_refitted_file_holds_its_chain_and_is_verified(batch: int | str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(digits_net(batch), str(tmp_path / "net.onnx"))
    out = tmp_path / "small"
    assert run(["compress", str(tmp_path / "net.onnx"), "--data", "digits", "--limit", "40", "--runs", "1", "--out", str(out)]) == 0
    links = {link["name"]: link["verdict"] for link in json.loads((out / "report.json").read_text())["chain"]}
    assert links["masked = sliced"] == links["masked = refitted"] == links["sliced = folded"] == "holds"
    capsys.readouterr()
    assert run(["verify", str(out)]) == 0
    assert "masked = refitted" in capsys.readouterr().out


def test_compress_writes_onnx_and_mnn_and_the_chain(made: Path, net: Path) -> None:
    assert sorted(file.name for file in made.iterdir()) == [
        "graphs.json",
        "model.mnn",
        "model.onnx",
        "plan.json",
        "report.html",
        "report.json",
    ]
    report = json.loads((made / "report.json").read_text())
    assert [link["name"] for link in report["chain"]] == ["masked = sliced", "sliced = folded", "folded = ONNX", *LINKS]
    assert report["chain"][0]["relative"] <= 1e-5
    assert all(link["ok"] for link in report["chain"])
    before, after = report["before"], report["after"]
    assert after["params"] < 0.6 * before["params"]
    assert before["images"] == after["images"] == 40
    assert before["file_bytes"]["onnx"] == net.stat().st_size
    assert after["file_bytes"] == {kind: (made / f"model.{kind}").stat().st_size for kind in ("onnx", "mnn")}
    assert set(after["latency_ms"]) == set(report["ratios"]) == {"onnxruntime", *ADDED}
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(str(made / "model.onnx")).graph.node}


def test_accuracy_is_what_onnxruntime_scores(made: Path) -> None:
    from irtool.train import load_data

    data = load_data("digits", limit=40, image_size=16, channels=3)
    images = data.preprocessing.normalise(next(iter(data.test.batches([np.arange(40)])))).numpy()
    session = onnxruntime.InferenceSession(str(made / "model.onnx"))
    hits = session.run(None, {"x": images})[0].argmax(1) == data.test.labels.numpy()
    assert json.loads((made / "report.json").read_text())["after"]["accuracy"] == pytest.approx(hits.mean())


def test_verify_replays_the_run_from_the_original(made: Path, cli: Run) -> None:
    code, printed, _ = cli("verify", made)
    assert code == 0
    assert printed.count("holds") == 3 + len(OWN_LINKS)


def test_verify_without_the_original_checks_what_is_left(made: Path, net: Path, tmp_path: Path, cli: Run) -> None:
    moved = shutil.copytree(made, tmp_path / "moved")
    report = json.loads((moved / "report.json").read_text())
    report["source"]["model"] = str(tmp_path / "gone.onnx")
    (moved / "report.json").write_text(json.dumps(report))
    code, printed, _ = cli("verify", moved)
    assert (code, printed.count("holds")) == (0, len(OWN_LINKS))
    assert "masked = sliced is left out, for want of the original" in printed
    assert cli("verify", moved, "--model", net)[1].count("holds") == 3 + len(OWN_LINKS)
    onnx.save(_spoilt(digits_net()), str(tmp_path / "other.onnx"))
    code, _, complaint = cli("verify", moved, "--model", tmp_path / "other.onnx")
    assert code == 1
    assert "its weights are not those that were compressed. Give --model FILE: the .onnx file of that run." in complaint


def test_verify_names_the_node_of_a_changed_file(made: Path, tmp_path: Path, cli: Run) -> None:
    other = shutil.copytree(made, tmp_path / "other")
    onnx.save(_spoilt(onnx.load(str(other / "model.onnx"))), str(other / "model.onnx"))
    code, printed, complaint = cli("verify", other)
    assert code == 1
    assert "BROKEN" in printed
    assert "folded = ONNX: differ by" in complaint
    assert "first diverging node: Conv_" in complaint


def _spoilt(model: onnx.ModelProto) -> onnx.ModelProto:
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.5, weight.name))
    return model


def test_a_fixed_batch_is_kept_and_images_come_one_by_one(tmp_path: Path, cli: Run) -> None:
    onnx.save(digits_net(1), str(tmp_path / "one.onnx"))
    options = ["--data", "digits", "--limit", "20", "--calibrate", "4", "--runs", "1"]
    code, printed, _ = cli("compress", tmp_path / "one.onnx", *options, "--out", tmp_path / "out")
    assert code == 0
    assert "accuracy (20 images)" in printed
    assert onnx.load(str(tmp_path / "out" / "model.onnx")).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1


def test_what_mnn_lacks_is_left_out_with_the_reason(tmp_path: Path, cli: Run) -> None:
    n = Net(18, (1, 3, 12, 12))
    onnx.save(n.model(n.head(n.conv(n.op("Hardmax", n.cbr("x", 3, 8), axis=1), 8, 8), 8)), str(tmp_path / "m.onnx"))
    code, printed, _ = cli("compress", tmp_path / "m.onnx", "--runs", "1", "--out", tmp_path / "out")
    assert code == 0
    assert "no MNN file: MNN's converter wrote no file: These Op Not Support: ONNX::Hardmax" in printed
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "graphs.json",
        "model.onnx",
        "plan.json",
        "report.html",
        "report.json",
    ]
    # Without MNN; the file's batch norm lets it be refitted on noise, which is one link more.
    assert cli("verify", tmp_path / "out")[1].count("holds") == 3 + len(OWN_LINKS)


def test_inspect_and_diff(made: Path, net: Path, cli: Run) -> None:
    code, printed, _ = cli("inspect", net, "--costs", "--text")
    assert code == 0
    assert "is a graph output (at output)" in printed
    assert "read by: ONNX, opset 13" in printed
    weights = {t.name: numpy_helper.to_array(t).size for t in onnx.load(str(net)).graph.initializer}
    statistics = {name for node in onnx.load(str(net)).graph.node if node.op_type == "BatchNormalization" for name in node.input[3:]}
    expected = sum(size for name, size in weights.items() if name not in statistics)
    assert json.loads(cli("inspect", net, "--json")[1])["cost"]["params"] == expected
    assert cli("diff", net, net)[0] == 0
    assert cli("diff", net, made)[0] == 1


def test_export_folds_and_converts(net: Path, tmp_path: Path, cli: Run) -> None:
    onnx_file, mnn_file = tmp_path / "files" / "net.onnx", tmp_path / "files" / "net.mnn"
    code, printed, _ = cli("export", net, "--out", onnx_file, "--out", mnn_file)
    assert code == 0
    assert printed.count("holds") == 2
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(str(onnx_file)).graph.node}
    assert cli("verify", net, onnx_file)[0] == 0
    assert cli("verify", onnx_file, mnn_file)[0] == 0
    assert cli("verify", net)[0] == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--input", "1x3x16x16", "--input", "1x3"], "2 sizes for 1 input. The inputs are x."),
        (["--input", "1x3x17x16"], "x: sizes (1, 3, 17, 16) for an input of ('N', 3, 16, 16). Give a size for each free axis."),
        (["--weights", "w.pth"], "a saved model has its weights in it. Leave --weights out."),
    ],
)
def test_wrong_options_are_one_line(options: list[str], expected: str, net: Path, cli: Run) -> None:
    code, _, complaint = cli("inspect", net, *options)
    assert code == 1
    assert expected in complaint
    assert len(complaint.splitlines()) == 1


def test_images_of_other_classes_are_refused(tmp_path: Path, cli: Run) -> None:
    n = Net(13, ("N", 3, 16, 16))
    onnx.save(n.model(n.head(n.cbr("x", 3, 8), 8, 4)), str(tmp_path / "m.onnx"))
    code, _, complaint = cli("compress", tmp_path / "m.onnx", "--data", "digits", "--limit", "10", "--out", tmp_path / "out")
    assert code == 1
    assert "the output is (10, 4), but the data has 10 classes" in complaint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("error", "holds"), [(0.01, True), (0.1, False)])
def test_mnn_is_compared_before_a_softmax_that_magnifies_rounding(error: float, holds: bool, tmp_path: Path) -> None:
    """A logit of 20 that is wrong by 5e-4 moves the probabilities by more than 1e-3; one that is wrong by 5e-3 is wrong."""
    paths = []
    for name, shift in (("a", 0.0), ("b", error)):
        n = Net(13, (1, 3, 8, 8))
        x = n.conv("x", 3, 6, 1)
        x = n.op("Conv", x, n.weight(4, 6, 1, 1), n.const([20 + shift, 20, 20, 20], np.float32))
        onnx.save(n.model(n.op("Softmax", n.op("Transpose", x, perm=[0, 2, 3, 1]), axis=-1), ranks=[4]), str(tmp_path / f"{name}.onnx"))
        export_mnn(tmp_path / f"{name}.onnx", tmp_path / f"{name}.mnn", verify=False)
        paths.append(tmp_path / f"{name}.mnn")
    inputs = (torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)
    assert engine_link(ENGINES["mnn"], tmp_path / "a.onnx", paths[0], inputs).note == ""
    link = engine_link(ENGINES["mnn"], tmp_path / "a.onnx", paths[1], inputs)
    assert link.ok is holds
    assert ("compared before the softmax" in link.note) is holds
