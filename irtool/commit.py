"""Several files that change as one: whoever looks sees all of the old ones or all of the new ones, even if the process is killed.

The new files are written to a temporary folder beside the old ones. A record that names them is put there by one rename: from then
on they are the result, and whoever comes next finishes what is left to be moved. Before, nothing has changed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from irtool.atomic_files import locked, parse_json, read_text, replacing
from irtool.errors import FileError
from irtool.temporary import MOVING, NAME, PREFIX, new_name, sweep


@contextmanager
def committed(folder: Path, stale: Callable[[Path], Iterable[str]] = lambda _new: ()) -> Iterator[Path]:
    """Yield a temporary folder in one that this process holds; if the block succeeds, its files replace those of their names.

    Ctrl-C while they are moved waits for the end.

    Args:
        folder: held by `locked`.
        stale: given the temporary folder, names of files in `folder` that go with the old result, though none replaces them.

    Raises:
        OSError: nothing was written; or after the record was, and then the next command goes on there.
    """
    finish(folder)
    temporary = folder / new_name()
    temporary.mkdir()
    try:
        yield temporary
        record = _record(folder, temporary, stale(temporary))
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    with _undisturbed():
        try:
            with replacing(folder / MOVING) as draft:
                draft.write_text(json.dumps(record), encoding="utf-8")
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finish(folder)


def restore(folder: Path) -> None:
    """Before files of a folder are read together: finish what a process that was ended left to be moved there.

    Raises:
        FileError: another process is at it, nothing can be written there, or the record is not irtool's.
    """
    if not os.path.lexists(folder / MOVING):
        return
    with locked(folder):
        try:
            finish(folder)
        except OSError as error:
            raise FileError(
                f"a run was ended while it put its files in place, and they cannot be moved ({error.strerror})",
                where=str(folder),
                remedy="See that they may be written there, or run that command again.",
            ) from error


def finish(folder: Path) -> None:
    """Finish a folder that this process holds; what dead processes left there goes, too.

    Raises:
        FileError: the record is not irtool's, or the files that it names are gone.
        OSError: a file cannot be moved.
    """
    if os.path.lexists(folder / MOVING):
        temporary, files, stale = _read(folder)
        for name, digest in stale.items():
            if _digest(folder / name) == digest:  # else it is another file by now, or a stranger's record names it
                (folder / name).unlink()
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.replace(temporary / name, folder / name)
            except FileNotFoundError:
                if not (folder / name).is_file():  # else it was moved before
                    raise
        (folder / MOVING).unlink()
        shutil.rmtree(temporary, ignore_errors=True)
    sweep(folder)


def _record(folder: Path, temporary: Path, stale: Iterable[str]) -> dict[str, Any]:
    """Describe the moves and deletions that are left to do, as JSON data. Raises OSError where it cannot be done."""
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    names = [path.relative_to(temporary).as_posix() for path in files]
    for path, name in zip(files, names, strict=True):
        if (folder / name).is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(folder / name))
        _flush(path)  # else a power cut could keep the record and lose what it speaks of
    return {"from": temporary.name, "files": names, "stale": {name: _digest(folder / name) for name in sorted(stale)}}


def _digest(path: Path) -> str | None:
    """SHA-256 of a file's bytes; None if it is none, or a link."""
    if path.is_symlink() or not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read(folder: Path) -> tuple[Path, list[str], dict[str, str]]:
    """The record, which may be anybody's: nothing that it names may lie outside of the folder.

    Raises:
        FileError: something does, or it is no such record.
    """
    try:
        if (folder / MOVING).is_symlink():
            raise ValueError("a link")
        record = parse_json(read_text(folder / MOVING))
        temporary, files, stale = folder / str(record["from"]), record["files"], record["stale"]
        if not isinstance(files, list) or not isinstance(stale, dict):
            raise ValueError("no record")
        sound = NAME.fullmatch(str(record["from"])) and temporary.is_dir() and not temporary.is_symlink()
        if not sound or not all(_is_inside(name, folder) and _is_inside(name, temporary) for name in files):
            raise ValueError("files elsewhere")
        if not all(_is_inside(name, folder) and "/" not in name and isinstance(digest, str) for name, digest in stale.items()):
            raise ValueError("files elsewhere")
    except (OSError, ValueError, KeyError, TypeError) as error:
        remedy = f"Remove {MOVING} if you know where the files are from, or choose another folder."
        raise FileError("a run was ended here, and its record of files to be moved is damaged", where=str(folder), remedy=remedy) from error
    return temporary, files, stale


def _is_inside(name: Any, folder: Path) -> bool:
    """Whether a name is that of a file below a folder, with no link on the way."""
    if not isinstance(name, str) or not name or "\\" in name or "\0" in name or ":" in name:
        return False
    parts = PurePosixPath(name).parts
    if PurePosixPath(name).is_absolute() or ".." in parts or any(part.startswith(PREFIX) for part in parts):
        return False
    above = [folder.joinpath(*parts[:depth]) for depth in range(1, len(parts))]
    return not any(path.is_symlink() for path in above)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait for the end of the block."""
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM}) if hasattr(signal, "pthread_sigmask") else None
    try:
        yield
    finally:
        if held is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
