"""An output folder that either gets everything or stays as it was."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from irtool.errors import FileError

_REMEDY = "Choose another --out, or make room."


@contextmanager
def output_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `out`; if the block succeeds its files move into `out`, else it is removed.

    Files of other names that `out` may hold stay. Ctrl-C during the moves waits for their end.

    Raises:
        FileError: `out` is a file, or cannot be written.
    """
    made = _missing_parents(out)
    try:
        if out.exists() and not out.is_dir():
            raise FileError("is a file, not a folder", where=str(out), remedy=_REMEDY)
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.is_dir():
            tempfile.TemporaryFile(dir=out).close()  # better to know now than after the work
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        _remove_empty(made)
        raise FileError(f"cannot write here ({error.strerror})", where=str(out), remedy=_REMEDY) from error
    try:
        yield temporary
        _move(temporary, out)
        made = []
    except OSError as error:
        raise FileError(f"writing failed ({error.strerror or error})", where=str(error.filename or out), remedy=_REMEDY) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _remove_empty(made)


def _move(temporary: Path, out: Path) -> None:
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM}) if hasattr(signal, "pthread_sigmask") else None
    try:
        out.mkdir(exist_ok=True)
        for file in sorted(temporary.iterdir()):
            os.replace(file, out / file.name)
    finally:
        if held is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _missing_parents(out: Path) -> list[Path]:
    """The folders above `out` that do not exist yet, innermost first."""
    return [parent for parent in out.parents if not parent.exists()]


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
