"""Errors speak of files by the names that the user gave or asked for, whichever step fails, and never by those of drafts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import onnx
import onnx_nets
import onnxruntime
import pytest

from irtool.atomic_files import replacing, scratch_folder
from irtool.errors import BackendError, CheckError, IrtoolError, shown_as
from irtool.temporary import PREFIX, folder_beside
from irtool.workflows.folders.output_folder import output_folder

Run = Callable[..., tuple[int, str, str]]
COMMANDS = (
    ("export", "net.onnx", "--out", "made.onnx", "--out", "made.mnn"),
    ("export", "net.onnx", "--out", "made.mnn"),
    ("simplify", "net.onnx", "--out", "made.onnx"),
    ("quantize", "net.onnx", "--weights-only", "--out", "made", "--runs", "1"),
    ("compress", "net.onnx", "--out", "made", "--runs", "1"),
)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_step_that_fails_names_no_draft(words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Run) -> None:
    """onnxruntime refuses the first file, then a later one, and so on: each time there is one line, with names that the user knows."""
    scratch, real = tmp_path / "scratch", onnxruntime.InferenceSession
    scratch.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    onnx.save(onnx_nets.residual(), "net.onnx")
    for failing in range(0, 12, 2 if words[0] != "compress" else 5):
        opened = count()

        def refuse(source: Any, *rest: Any, at: int = failing, opened: count[int] = opened, **options: Any) -> Any:
            if next(opened) == at:
                raise RuntimeError(f"{source if isinstance(source, str) else 'the model'} is not liked")
            return real(source, *rest, **options)

        monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
        code, said, error = cli(*words)
        assert not [draft for draft in (PREFIX, str(scratch)) if draft in said + error], (failing, said, error)
        assert code == 0 or "is not liked" in error or "refuses" in error, error
        if code == 0 and next(opened) <= failing:
            break


def test_whatever_makes_a_draft_names_it(tmp_path: Path) -> None:
    target = tmp_path / "my net.onnx"

    def told(error: type[IrtoolError], path: Path) -> IrtoolError:
        return error(f"{path} is not liked", where=str(path), remedy=f"Look at {path}.")

    with replacing(target) as draft, pytest.raises(BackendError) as found:
        raise told(BackendError, draft)
    assert str(found.value) == f"{target}: {target} is not liked. Look at {target}."
    with folder_beside(tmp_path) as folder:
        error = told(CheckError, folder / "my net.onnx")
        assert (error.where, error.place) == (str(target), str(folder / "my net.onnx"))
    with output_folder(tmp_path / "out") as folder, replacing(folder / "int8.onnx") as draft:
        assert told(CheckError, draft).where == str(tmp_path / "out" / "int8.onnx")
    with scratch_folder() as folder:
        assert told(CheckError, folder / "net.onnx").where == "net.onnx"
        with shown_as(folder / "net.onnx", "given.onnx"):
            assert told(CheckError, folder / "net.onnx").what == "given.onnx is not liked"
        path = folder / "net.onnx"
    assert told(CheckError, path).where == str(path)  # it is nobody's draft any more
