"""Mistakes of place: what a command cannot read or write there is told by the user's own names."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

import irtool
from irtool.atomic_files import MAKE_ROOM, scratch_folder
from irtool.cli.main import run
from irtool.errors import FileError
from irtool.workflows import export
from irtool.workflows.folders.output_folder import output_folder

MODEL = "VGG:depth=11,width=0.0625"
SIZE = ("--input", "1x3x32x32")


def _said(capsys: pytest.CaptureFixture[str], *words: str | Path, code: int = 1) -> str:
    capsys.readouterr()
    assert run([str(word) for word in words]) == code
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    """The folder of a recipe of two steps, its files empty."""
    folder = tmp_path / "run"
    for step, names in (("00-original", ("model.safetensors",)), ("01-export", ("model.safetensors", "model.onnx", "model.mnn"))):
        (folder / step).mkdir(parents=True)
        (folder / step / "step.json").write_text('{"done": true}')
        for name in names:
            (folder / step / name).touch()
    (folder / "recipe.json").touch()
    return folder


@pytest.mark.parametrize("command", ["verify", "report"])
@pytest.mark.parametrize("step", ["", "01-export"])
def test_a_recipes_folder_is_no_compress_run(command: str, step: str, steps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = " ".join(str(steps / "01-export" / name) for name in ("model.safetensors", "model.onnx", "model.mnn"))
    assert _said(capsys, command, steps / step) == (
        f"{steps / step / 'report.json'}: cannot be read (No such file or directory). A recipe made it: verify a step's files "
        f"(irtool verify {files}), or compare two steps on a page (irtool diff {steps / '00-original'} {steps / '01-export'} --html FILE)."
    )


def test_a_recipes_folder_is_no_model(steps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = _said(capsys, "inspect", steps)
    assert told == f"{steps}: holds no model.safetensors. A recipe made it: give a step's folder, e.g. {steps / '01-export'}."


@pytest.mark.parametrize(("words", "where"), [
    (("compress", MODEL, *SIZE, "--out", ""), "--out: "), (("compress", MODEL, *SIZE, "--out="), "--out: "), (("inspect", ""), ""),
    (("verify", ""), ""),
])  # fmt: skip
def test_an_empty_name_is_no_folder(
    words: tuple[str, ...], where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _said(capsys, *words) == f"{where}an empty name. Give a name; . is the folder that you are in."
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_has_the_users_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(graph: Any, path: Path, **options: Any) -> None:
        raise FileError("nothing was written (No space left on device)", where=str(path), remedy=MAKE_ROOM)

    monkeypatch.setattr(export, "export_onnx", full)
    room = f"It is written in {tempfile.gettempdir()} first: make room there, or name another folder in TMPDIR."
    for target, told in (("a.onnx", f"{tmp_path}/a.onnx"), ("a.mnn", f"ONNX file on the way to {tmp_path}/a.mnn")):
        said = _said(capsys, "export", MODEL, *SIZE, "--out", tmp_path / target)
        assert said == f"{told}: nothing was written (No space left on device). {room}"


def test_what_cannot_be_written_into_a_folder_has_the_name_that_it_would_have_there(tmp_path: Path) -> None:
    with pytest.raises(FileError) as told, output_folder(tmp_path / "out") as folder:
        raise FileError("nothing was written", where=str(folder / "deep" / "a.onnx"), remedy=MAKE_ROOM)
    assert str(told.value) == f"{tmp_path / 'out' / 'deep' / 'a.onnx'}: nothing was written. {MAKE_ROOM}"


def test_a_full_folder_for_temporary_files_is_told_by_its_own_name() -> None:
    with pytest.raises(FileError) as told, scratch_folder() as folder:
        raise FileError("nothing was written", where=str(folder / "a.onnx"), remedy=MAKE_ROOM)
    assert str(told.value).startswith(f"a.onnx: nothing was written. It is written in {tempfile.gettempdir()} first: make room there")


@pytest.mark.skipif(sys.platform != "linux", reason="needs a place that takes no file, whoever writes")
def test_a_place_that_takes_no_file_is_told_with_its_option(capsys: pytest.CaptureFixture[str]) -> None:
    target = Path("/proc/a.onnx")
    assert _said(capsys, "export", MODEL, *SIZE, "--out", target) == (
        f"{target}: cannot write here (No such file or directory). Choose another --out, or make room."
    )


@pytest.mark.parametrize("batch", [1, 3])
def test_another_batch_of_the_example_is_no_difference(batch: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    graph = irtool.trace(irtool.models.build("VGG", depth=11, width=0.0625), torch.zeros(batch, 3, 32, 32))
    irtool.save(graph, tmp_path / "a.safetensors")
    irtool.save(irtool.prune(graph, irtool.plan(graph, "l1", 0.5, "local")), tmp_path / "b.safetensors")
    run(["diff", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")])
    alike = capsys.readouterr().out
    torch.save(graph.module.state_dict(), tmp_path / "a.pth")
    run(["diff", MODEL, str(tmp_path / "b.safetensors"), *SIZE, "--weights-a", str(tmp_path / "a.pth")])
    told = capsys.readouterr().out
    assert told == alike
    assert "output 0" not in told
