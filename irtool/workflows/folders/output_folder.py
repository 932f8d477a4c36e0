"""Output folders: each belongs to one command, is held by one process, and gets everything or stays as it was."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from irtool.atomic_files import MAKE_ROOM, locked, parse_json, read_text
from irtool.commit import committed, finish
from irtool.engines.table import ENGINES
from irtool.errors import FileError, Interrupted, shown_as
from irtool.temporary import MOVING
from irtool.workflows.compress.built import FILES, SEARCH_FILES
from irtool.workflows.compress.engine_files import COMPANIONS
from irtool.workflows.loading.models import saved_model
from irtool.workflows.loading.spec import ModelSpec
from irtool.workflows.quantize.forms import WORDS

COMPRESS, QUANTIZE, RECIPE, TRAIN = "irtool compress", "irtool quantize", "a recipe", "irtool train"
"""Who makes folders."""
_REPORTS = {COMPRESS: "chain", QUANTIZE: "int8"}
"""Entries that only that command's report.json holds."""
_RECORDS = {RECIPE: ("recipe.json", "step.json", "00-original/step.json"), TRAIN: ("last.pt", "train.json")}
"""Files that only that maker leaves."""


_ENGINES = [f"{kind}{suffix}" for kind in WORDS for suffix in (*(row.suffix for row in ENGINES.values()), ".json")]
_WRITES = {
    COMPRESS: [*FILES.values(), *SEARCH_FILES.values(), f"{FILES['onnx']}.data", *COMPANIONS],
    QUANTIZE: [*_ENGINES, "steps.txt", "report.json", "sensitivity.json", "sensitivity.png"],
}
"""Files that each writes, some of them not always."""


@contextmanager
def claimed(out: Path, maker: str | None = None, *, kept: str = "") -> Iterator[None]:
    """Make `out` and hold it for this process. It goes again if nothing came into it.

    Args:
        maker: who writes here, one of the names above; None: it is not known yet, and `output_folder` looks when it is.
        kept: what stays after Ctrl-C, and how to go on; empty if nothing does.

    Raises:
        FileError: it is a file, cannot be written, is another maker's, or another process writes here.
        Interrupted: Ctrl-C, and there is something that was kept.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            what = "is a file, not a folder" if out.exists() else f"cannot write here ({error.strerror})"
            raise FileError(what, where=str(out), remedy=MAKE_ROOM) from error
        with locked(out):
            _finish(out)
            if maker is not None:
                _refuse_others(out, {maker})
            yield
    except KeyboardInterrupt as stop:
        if kept and maker in makers(out):
            raise Interrupted("interrupted", where=str(out), remedy=kept) from stop
        raise
    finally:
        _remove_empty(made)


@contextmanager
def output_folder(out: Path, maker: str | None = None) -> Iterator[Path]:
    """Yield a temporary folder in `out`; if the block succeeds its files move up into `out` as one, else they are removed.

    What the same maker left is replaced; files of other names stay.

    Raises:
        FileError: see `claimed`.
    """
    with claimed(out, maker):
        try:
            with committed(out, lambda new: _stale(out, new)) as temporary:
                with shown_as(temporary, out):  # nobody knows its files by the names that they have there
                    try:
                        yield temporary
                    except OSError as error:
                        raise _unwritten(error, out) from error
                _refuse_others(out, makers(temporary))  # no work is begun where it is told before; here none is destroyed
        except OSError as error:
            raise _unwritten(error, out) from error


def _unwritten(error: OSError, out: Path) -> FileError:
    begun = os.path.lexists(out / MOVING)
    what = f"{'the result is made, but its files cannot be moved' if begun else 'nothing was written'} ({error.strerror or error})"
    return FileError(what, where=str(error.filename or out), remedy=MAKE_ROOM)


def makers(folder: Path) -> set[str]:
    """Name who left files in a folder, by the records that are there."""
    report = read_object(folder / "report.json")
    found = {maker for maker, key in _REPORTS.items() if key in report}
    left = {maker for maker, names in _RECORDS.items() if any((folder / name).is_file() for name in names)}
    if COMPRESS in found and not (folder / "last.pt").exists():
        left.discard(TRAIN)  # it copies the history of the training that its model comes from
    return found | left


def keep_inputs(targets: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuse to write over what is read.

    Args:
        targets: files that are going to be written, or folders that may be emptied.
        inputs: files that are read.

    Raises:
        FileError: one of the targets is an input, or holds one.
    """
    read = [Path(os.path.realpath(path)) for path in inputs]
    for target in targets:
        if any(path.is_relative_to(os.path.realpath(target)) for path in read):
            raise FileError("is read by this very command, and would be written over", where=str(target), remedy="Write elsewhere.")


def model_files(model: str, weights: Path | None = None) -> list[Path]:
    """The files that MODEL and --weights are read from.

    Raises:
        IrtoolError: MODEL cannot be read.
    """
    saved = saved_model(model)
    place = ModelSpec.parse(model).file if saved is None else saved
    return [path for path in (place, weights) if path is not None and path.is_file()]


def _refuse_others(out: Path, allowed: set[str]) -> None:
    others = sorted(makers(out) - allowed)
    if others:
        raise FileError(f"holds files of {' and '.join(others)}", where=str(out), remedy="Choose another --out.")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one if the file holds none."""
    try:
        found = parse_json(read_text(path))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _finish(out: Path) -> None:
    try:
        finish(out)
    except OSError as error:
        what = f"a run was ended here, and its files cannot be moved ({error.strerror or error})"
        raise FileError(what, where=str(out), remedy=MAKE_ROOM) from error


def _stale(out: Path, new: Path) -> list[str]:
    """Files of an older result of the same maker that the new one lacks: beside it they would seem to belong to it."""
    written = [name for maker in makers(new) & makers(out) for name in _WRITES.get(maker, ())]
    return [name for name in written if (out / name).is_file() and not (new / name).exists()]


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
