"""Writing files so that nobody ever sees half of one, and folders that one process at a time writes to."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from irtool.errors import FileError

LOCK = ".irtool.lock"
MAKE_ROOM = "Choose another --out, or make room."


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` if the block succeeds, remove it if not.

    The temporary name keeps the suffix, since some writers choose the format by it. A link is written through.

    Raises:
        FileError: the folder does not exist and cannot be made, or is not writable, `path` is there and no regular file (a
            device, say), or the disk is full.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise FileError("is there, and no regular file", where=str(path), remedy="Give the path of a file.")
    target = Path(os.path.realpath(path))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}.", suffix=target.suffix, dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise FileError(f"cannot write here ({error.strerror})", where=str(path), remedy=MAKE_ROOM) from error
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except OSError as error:
        raise FileError(f"nothing was written ({error.strerror or error})", where=str(path), remedy=MAKE_ROOM) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process. The system lets go of it when the process ends, however it does.

    Raises:
        FileError: another process holds it, or nothing can be written there.
    """
    path = folder / LOCK
    try:
        file = path.open("a")
    except OSError as error:
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
