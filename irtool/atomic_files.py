"""Reading texts of a bounded size, writing files so that nobody ever sees half of one, folders that one process at a time writes to."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from irtool.errors import FileError, shown_as
from irtool.temporary import new_name, sweep

LOCK = ".irtool.lock"
MAKE_ROOM = "Choose another --out, or make room."
_TEMPORARY = "Make room there, or name another folder in the environment variable TMPDIR."
LARGEST_TEXT = 64 * 2**20
"""Bytes of a text that is read whole: read as JSON it may take twenty times as much memory."""


def read_text(path: str | os.PathLike[str], most: int = LARGEST_TEXT) -> str:
    """Read a text in UTF-8.

    Args:
        path: the file.
        most: bytes that it may have.

    Raises:
        OSError: it cannot be read, is no regular file (a pipe would be waited for), or is larger.
        UnicodeDecodeError: it is no UTF-8.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "is a folder" if stat.S_ISDIR(found.st_mode) else "is no regular file", str(path))
    if found.st_size > most:
        raise OSError(errno.EFBIG, f"{found.st_size:,} bytes, more than the {most:,} that are read", str(path))
    with open(path, "rb") as file:
        return file.read(most).decode("utf-8")


MOST_NESTED = 500
"""Lists and dicts within each other, in JSON that is read or written. Python's own limit differs from release to release: 3.13 takes thousands."""


def check_nesting(data: Any) -> None:
    """Refuse JSON data of more than MOST_NESTED levels; it must not hold itself.

    Raises:
        ValueError: nested too deep.
    """
    level = [data]
    for _ in range(MOST_NESTED + 1):
        held = [value for value in level if isinstance(value, dict | list | tuple)]
        if not held:
            return
        level = [item for value in held for item in (value.values() if isinstance(value, dict) else value)]
    raise ValueError("nested too deep")


def parse_json(text: str) -> Any:
    """Read JSON in which no object names a thing twice: one reader would take the first, another the last.

    Raises:
        ValueError: it is no such JSON, or nested too deep.
    """
    try:
        found = json.loads(text, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    check_nesting(found)
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{twice[:80]!r} is named twice")
    return made


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` if the block succeeds, remove it if not.

    The temporary name keeps the suffix, since some writers choose the format by it. A link is written through. What dead processes
    left in the folder goes.

    Raises:
        FileError: the folder does not exist and cannot be made, or is not writable, `path` is there and no regular file (a
            device, say), or the disk is full.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise FileError("is there, and no regular file", where=str(path), remedy="Give the path of a file.")
    target = Path(os.path.realpath(path))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent)
        temporary = target.parent / new_name(target.suffix)
        temporary.touch(0o600, exist_ok=False)
    except OSError as error:
        raise FileError(f"cannot write here ({error.strerror})", where=str(path), remedy=MAKE_ROOM) from error
    try:
        with shown_as(temporary, path):
            yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except OSError as error:
        raise FileError(f"nothing was written ({error.strerror or error})", where=str(path), remedy=MAKE_ROOM) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a folder where the system has its temporary files, by its absolute path; it goes with the block.

    Errors call what lies there by its name alone, or by what `shown_as` says of it.

    Raises:
        FileError: there is none, or a file of the block cannot be written there; then the remedy speaks of that folder.
    """
    try:
        made = tempfile.TemporaryDirectory()
    except OSError as error:
        raise FileError(f"no folder for temporary files ({error.strerror or error})", remedy=_TEMPORARY) from error
    with made as name, shown_as(f"{Path(name).absolute()}{os.sep}", ""):
        try:
            yield Path(name).absolute()
        except FileError as error:
            if error.remedy != MAKE_ROOM or error.place is None or not Path(error.place).is_relative_to(Path(name).absolute()):
                raise
            remedy = f"It is written in {tempfile.gettempdir()} first: make room there, or name another folder in TMPDIR."
            raise FileError(error.what, where=error.where, remedy=remedy) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process. The system lets go of it when the process ends, however it does.

    Raises:
        FileError: another process holds it, or nothing can be written there.
    """
    path = folder / LOCK
    try:
        file = _open_lock(path)
    except OSError as error:
        if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
            remedy = f"Remove {LOCK} if it is not yours, or choose another folder."
            raise FileError(f"its {LOCK} is no file that irtool made", where=str(folder), remedy=remedy) from error
        raise FileError(f"cannot write here ({error.strerror})", where=str(folder), remedy=MAKE_ROOM) from error
    with file:
        # The holder removes its file at the end: whoever opened that one just before holds nothing.
        if not _lock(file) or not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise FileError("another irtool is writing here", where=str(folder), remedy="Wait for its end, or choose another --out.")
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows keeps what is open: an empty file is left
                path.unlink()


def _open_lock(path: Path) -> IO[str]:
    """Open the lock, which may be a stranger's: through a link a file elsewhere would be made, and a pipe would be waited for.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    return os.fdopen(handle, "r+")


if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[str]) -> bool:
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _lock(file: IO[str]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks: nobody can hold anything there
            return True
        return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
