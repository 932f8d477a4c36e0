"""Pages: nothing from outside, nothing from a model read as markup, every malformed file one clear line."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from irtool.analysis.diff.diff import Diff, diff
from irtool.cli.main import run
from irtool.errors import FileError
from irtool.hosts.torch.graph import FxGraph
from irtool.hosts.torch.tracing.trace import trace
from irtool.models import VGG
from irtool.page import diff_page
from irtool.passes import fold_batchnorm, prune
from irtool.pruning import plan
from irtool.train.history import History, Record
from irtool.workflows.folders.run_folder import keep_history, page_of, write_run_page
from irtool.workflows.quantize.sensitivity import Sensitivity
from irtool.workflows.quantize.sensitivity_plot import write_sensitivity

EVIL = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>@@style@@"


def data_of(page: str) -> Any:
    """The data that the page's script reads."""
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(found)


@pytest.fixture(scope="module")
def graphs() -> tuple[FxGraph, FxGraph]:
    torch.manual_seed(0)
    before = trace(VGG(11, width=0.125).eval(), torch.zeros(1, 3, 32, 32))
    return before, fold_batchnorm(prune(before, plan(before, "l1", ratio=0.5), "drop"))


@pytest.fixture(scope="module")
def found(graphs: tuple[FxGraph, FxGraph]) -> Diff:
    return diff(*graphs)


@pytest.fixture
def folder(graphs: tuple[FxGraph, FxGraph], tmp_path: Path) -> Path:
    """A run folder with all that a page can show."""
    model = {"params": 100, "macs": 1000, "weight_bytes": 400, "accuracy": 0.9, "images": 50, "file_bytes": {"onnx": 500}, "latency_ms": {"onnxruntime": 1.0}, "runs": 3, "threads": 1}  # fmt: skip
    link = {
        "name": "masked = sliced",
        "arithmetic": "float64",
        "relative": 1e-16,
        "max_abs": 1e-15,
        "tolerance": 1e-9,
        "ok": True,
        "verdict": "holds",
        "note": "",
        "diverges": "",
    }
    report = {
        "format": 1, "made_with": {"torch": "2"}, "source": {"model": "VGG"}, "options": {"criterion": "l1", "ratio": 0.5}, "channels": [10, 5], "notes": ["a note"],
        "chain": [link], "before": model, "after": {**model, "params": 50}, "ratios": {"onnxruntime": 0.5}, "files": {},
    }  # fmt: skip
    (tmp_path / "report.json").write_text(json.dumps(report))
    plan(graphs[0], "l1", ratio=0.5).to_json(tmp_path / "plan.json")
    records = tuple(
        Record(epoch, 2 / epoch, 0.5 + 0.1 * epoch, 2.2 / epoch, 0.45 + 0.1 * epoch, 0.1, 1.0, 1.0, {"small_scales": 0.1})
        for epoch in (1, 2, 3)
    )
    History({}, records).write_csv(tmp_path / "log.csv")
    layers = [{"name": "features.0", "value": 0.8}, {"name": "classifier", "value": 0.88}]
    (tmp_path / "sensitivity.json").write_text(
        json.dumps({"format": 1, "what": "accuracy with one layer in int8", "metric": "accuracy", "baseline": 0.9, "layers": layers})
    )
    write_run_page(tmp_path, *graphs, "a small VGG")
    return tmp_path


def test_a_page_loads_nothing(found: Diff) -> None:
    page = found.to_html("a", "b")
    assert "default-src 'none'" in page
    without = page.replace("http://www.w3.org/2000/svg", "")
    assert not re.findall(r"https?://|url\((?!#)|@import|<link(?! rel=\"icon\" href=\"data:,\")|\ssrc=", without)


def test_a_page_holds_the_diff_and_the_picture(found: Diff) -> None:
    data = data_of(found.to_html("a", "b"))
    assert data["diff"] == json.loads(found.to_json())
    assert data["picture"] == json.loads(json.dumps(found.picture))
    assert data["names"] == ["a", "b"]


def test_names_of_models_are_not_markup() -> None:
    layers = OrderedDict([("c", nn.Conv2d(3, 2, 1)), ("r", nn.ReLU())])
    graph = trace(nn.Sequential(layers).eval(), torch.zeros(1, 3, 4, 4))
    picture = json.loads(json.dumps(diff(graph, graph).picture))
    for node in picture["nodes"]:
        node["label"] = node["module"] = node["op"] = EVIL
    page = diff_page(diff(graph, graph).to_dict(), picture, EVIL, (EVIL, "b"))
    assert page.count("<script") == 2
    assert "<img" not in page
    assert page.count("<style>") == 1
    assert data_of(page)["picture"]["nodes"][0]["op"] == EVIL


def test_numbers_that_json_lacks_become_text(graphs: tuple[FxGraph, FxGraph]) -> None:
    broken = graphs[0].clone()
    data = broken.params["classifier.weight"].data
    assert data is not None
    data[0, 0] = float("inf")
    page = diff(graphs[0], broken).to_html()
    assert data_of(page)["diff"]["parameters"][0]["norm"] == "inf"


def test_a_run_page_holds_all_that_the_folder_has(folder: Path) -> None:
    data = data_of((folder / "report.html").read_text())
    assert data["title"] == "a small VGG"
    assert [row["epoch"] for row in data["curves"][0]["rows"]] == [1, 2, 3]
    assert data["curves"][0]["rows"][0]["small_scales"] == 0.1
    assert data["sensitivity"]["layers"][0]["name"] == "features.0"
    assert {node["status"] for node in data["picture"]["nodes"]} == {"same", "changed", "replaced"}
    assert data["plan"]["layers"][-1]["reason"] == "is a graph output (at output)"
    assert data["missing"] == []


def test_a_history_as_json_serves_too(folder: Path) -> None:
    records = [
        {
            "epoch": 1,
            "train_loss": 1.0,
            "train_accuracy": 0.5,
            "test_loss": None,
            "test_accuracy": None,
            "lr": 0.1,
            "rate": 1.0,
            "seconds": 1.0,
            "extra": {"x": 2},
        }
    ]
    (folder / "history.json").write_text(json.dumps({"facts": {}, "records": records}))
    rows = data_of(page_of(folder))["curves"][0]["rows"]
    assert (rows[0]["train_loss"], rows[0]["x"]) == (1.0, 2)


def test_the_sensitivity_that_quantize_writes_serves_too(folder: Path) -> None:
    found = [Sensitivity("features.0", "Conv", 20.0, 0.75, 27), Sensitivity("classifier", "Gemm", 40.0, 0.9, 640)]
    write_sensitivity(found, folder / "sensitivity.json", images=50)
    data = data_of(page_of(folder))["sensitivity"]
    assert data["layers"] == [{"name": "features.0", "value": 0.75}, {"name": "classifier", "value": 0.9}]
    assert "on 50 images" in data["what"]


def test_a_training_history_goes_along(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    keep_history(folder, out)
    assert (out / "log.csv").read_bytes() == (folder / "log.csv").read_bytes()
    keep_history(folder / "log.csv", out)  # a model that is no folder has none
    assert [path.name for path in out.iterdir()] == ["log.csv"]


def test_the_command_makes_the_page_anew(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "report.html").unlink()
    assert run(["report", str(folder)]) == 0
    assert data_of((folder / "report.html").read_text())["picture"] is not None
    (folder / "graphs.json").unlink()
    assert run(["report", str(folder), "--out", str(tmp_path / "page.html")]) == 0
    assert "graphs.json is missing" in data_of((tmp_path / "page.html").read_text())["missing"][0]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("report.json", "{"),
        ("report.json", '{"format": 99}'),
        ("graphs.json", "[1]"),
        ("graphs.json", '{"format": 1, "nodes": []}'),
        ("graphs.json", '{"format": 1, "nodes": [{}], "edges_before": [[0, 7]], "edges_after": []}'),
        ("graphs.json", "[" * 100000),
        ("plan.json", "nonsense"),
        ("sensitivity.json", '{"format": 1, "what": "x", "layers": [{"name": "a"}]}'),
    ],
)
def test_malformed_files_are_one_line(folder: Path, name: str, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / name).write_text(content)
    with pytest.raises(FileError, match="Run irtool compress again"):
        page_of(folder)
    assert run(["report", str(folder)]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_no_report_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(tmp_path)]) == 1
    assert "Give the --out folder of an irtool compress run." in " ".join(capsys.readouterr().err.split())


def test_diff_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = ["VGG:depth=11,width=0.0625", "VGG:depth=11,width=0.125"]
    assert run(["diff", *models, "--input", "1x3x32x32", "--html", str(tmp_path / "diff.html")]) == 1
    assert data_of((tmp_path / "diff.html").read_text())["names"] == models
    assert run(["diff", *models, "--input", "1x3x32x32", "--html", str(tmp_path / "diff.html" / "page.html")]) == 2
