"""`irtool.compress`, `quantize`, `verify` and `run_recipe` from Python: what the commands do, returned and not printed."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from installed import OWN_LINKS
from torch import nn

import irtool
from irtool.errors import FileError, OptionError
from irtool.progress import Reporter, Status

SMALL = "VGG:depth=11,width=0.0625"
SHAPE = [(1, 3, 32, 32)]


class Heard(Reporter):
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.tasks: set[str] = set()

    def __call__(self, status: Status, /) -> None:
        self.tasks.add(status.task)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.stages.append(name)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[irtool.Compression, Path, Heard]:
    place, heard = tmp_path_factory.mktemp("compress"), Heard()
    out, weights = place / "small", place / "weights.pth"
    torch.save(irtool.models.VGG(11, width=0.0625).state_dict(), weights)
    done = irtool.compress(
        SMALL, out, weights=weights, inputs=SHAPE, budget={"macs": 0.5}, limits={"features.0": 0.25}, runs=1, progress=heard
    )
    return done, out, heard


def test_compress_returns_what_it_wrote(made: tuple[irtool.Compression, Path, Heard], capfd: pytest.CaptureFixture[str]) -> None:
    done, out, heard = made
    assert done.folder == out
    assert {path.name for path in out.iterdir()} == set(done.report.files.values())
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(done.report.to_dict()))
    assert irtool.Plan.from_json(out / "plan.json") == done.plan
    assert 0.9 * 0.5 <= done.report.after.macs / done.report.before.macs <= 0.5
    done.report.chain.require()
    assert {"trace", "plan", "prune", "fold"} <= set(heard.stages)
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(done.graph.run(x), irtool.fold_batchnorm(irtool.load(out / "model.safetensors")).run(x), atol=1e-5)
    assert capfd.readouterr() == ("", "")


def test_verify_returns_the_chain(made: tuple[irtool.Compression, Path, Heard]) -> None:
    links = irtool.verify(made[1]).links
    names = [link.name for link in links]
    assert names[0] == "model = traced"
    assert names[-1 - len(OWN_LINKS) :] == ["folded = ONNX", *OWN_LINKS]
    assert all(link.ok for link in links)
    (read,) = irtool.verify(made[1] / "model.onnx").links
    assert read.ok


@pytest.mark.parametrize("kind", ["module", "graph", "onnx"])
def test_compress_takes_objects(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3)).eval()
    x = torch.randn(2, 3, 12, 12)
    graph = irtool.trace(net, x)
    if kind == "onnx":
        irtool.export_onnx(graph, tmp_path / "net.onnx")
        graph = irtool.load_onnx(tmp_path / "net.onnx")  # type: ignore[assignment]
    given: Any = (net, {"example_inputs": x}) if kind == "module" else (graph, {})
    done = irtool.compress(given[0], tmp_path / "small", ratio=0.5, runs=1, **given[1])
    assert done.plan.removed == 8
    done.report.chain.require()
    assert done.report.source["model"] is None


def test_compress_takes_loaded_data(tmp_path: Path) -> None:
    data = irtool.train.load_data("digits", channels=3, limit=64)
    done = irtool.compress(SMALL, tmp_path / "small", data=data, ratio=0.3, runs=1)
    assert done.report.before.images == len(data.test)
    assert done.report.options["reconstruct"] == 128


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"ratoi": 0.5}, "ratoi: is no option. Did you mean ratio?"),
        ({"ratio": 0.5, "budget": {"macs": 0.5}}, "a ratio and a budget"),
        ({"distil": 2}, "no images"),
        ({"budget": {"flops": 0.5}}, "flops"),
    ],
)
def test_impossible_wishes_write_nothing(arguments: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(irtool.errors.IrtoolError, match=expected):
        irtool.compress(SMALL, tmp_path / "small", inputs=SHAPE, **arguments)
    assert not (tmp_path / "small").exists()


def test_a_module_needs_inputs(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="a module without inputs"):
        irtool.compress(nn.Linear(2, 2), tmp_path / "small")


def test_quantize_returns_what_was_measured(tmp_path: Path) -> None:
    heard = Heard()
    done = irtool.quantize(SMALL, tmp_path / "int8", calib="digits", images=64, max_drop=100, runs=1, sensitivity=False, progress=heard)
    assert done.file == tmp_path / "int8" / "int8.onnx"
    assert done.outcome.after.bytes == done.file.stat().st_size < done.outcome.before.bytes
    assert json.loads((tmp_path / "int8" / "report.json").read_text())["int8"] == vars(done.outcome.after)
    assert "int8 is" in done.verdict
    assert "calibrate" in heard.tasks


def test_a_recipe_is_run_and_taken_up(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'model = "{SMALL}"\ndata = "digits"\nlimit = 64\n[[step]]\ndo = "prune"\nratio = 0.5\n')
    first = irtool.run_recipe(recipe, tmp_path / "out")
    assert [step["name"] for step in first.steps] == ["original", "prune"]
    assert first.kept == ()
    assert irtool.run_recipe(recipe, tmp_path / "out").kept == ("original", "prune")


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such file"):
        irtool.verify(tmp_path / "model.onnx")


def test_every_option_of_the_command_is_one_in_python() -> None:
    from irtool.cli.compress import compress
    from irtool.workflows.compress.options import CompressOptions

    flags = set(inspect.signature(compress).parameters)
    assert set(CompressOptions.__dataclass_fields__) - {"limits"} <= flags
    assert "layer_limit" in flags


def test_compress_goes_in_stages_and_distils(tmp_path: Path) -> None:
    data, heard = irtool.train.load_data("digits", channels=3, limit=128), Heard()
    done = irtool.compress(SMALL, tmp_path / "small", data=data, budget={"macs": 0.6}, stages=2, distil=2, runs=1, progress=heard)
    told = next(note for note in done.report.notes if note.startswith("planning in 2 stages"))
    assert done.plan.stages == (2 if " kept: " in told else 1)
    assert (done.report.options["stages"], done.report.options["distil"]) == (done.plan.stages, 2)
    assert done.report.after.macs <= 0.6 * done.report.before.macs
    assert "distil" in heard.tasks
    assert any(note.startswith("distil") for note in done.report.notes)
    done.report.chain.require()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"distil": 2, "inputs": SHAPE}, "--distil: no images"),
        ({"stages": 2, "budget": {"macs": 0.5}, "inputs": SHAPE}, "--stages: no images"),
        ({"distil": 2, "constants": "drop", "data": "digits"}, "distilling follows refitting"),
        ({"distil": -1, "data": "digits"}, "--distil"),
    ],
)
def test_distilling_and_stages_need_their_images(arguments: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(irtool.errors.IrtoolError, match=expected):
        irtool.compress(SMALL, tmp_path / "small", **arguments)
