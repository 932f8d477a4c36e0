"""Temporary files and folders beside what they become, by names that tell who made them: those of dead processes are removed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from irtool.errors import shown_as

PREFIX = ".irtool."
MOVING = ".irtool.moving"
"""In a folder: the record of files that are being put in place. Until it is gone, what is still to come lies in a temporary folder."""
NAME = re.compile(r"\.irtool\.([0-9a-f]{12})-([0-9a-f]{8})-(\d{1,10})-(\d{1,20})\.[0-9a-f]{12}(\.\w{1,20})?")
"""The machine, its process namespace since it was started, the process, when that began; a random number, perhaps a suffix."""


def new_name(suffix: str = "") -> str:
    """A name that no other process makes, and that tells who made it."""
    suffix = suffix if re.fullmatch(r"\.\w{1,20}", suffix, re.ASCII) else ""
    return f"{PREFIX}{_machine()}-{_namespace()}-{os.getpid()}-{_begun(os.getpid()) or 0}.{secrets.token_hex(6)}{suffix}"


@contextmanager
def folder_beside(place: Path) -> Iterator[Path]:
    """A temporary folder in another, by whose name errors call it; it goes with the block. Raises OSError."""
    made = place / new_name()
    made.mkdir()
    try:
        with shown_as(made, place):
            yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what dead processes of this machine left in a folder. What nobody can tell about stays, and what is still to be moved."""
    if os.path.lexists(folder / MOVING):
        return
    try:
        found = [entry for entry in os.scandir(folder) if entry.name.startswith(PREFIX) and _is_dead(entry.name)]
    except OSError:
        return
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        elif entry.is_file(follow_symlinks=False):
            with contextlib.suppress(OSError):
                os.unlink(entry.path)


def _is_dead(name: str) -> bool:
    """Whether the process that a name tells of has ended, as far as this one can know.

    Of another machine's processes nothing is known, nor of those in another container: the same number is another process there.
    A number may be given anew: the time at which a process began tells two apart.
    """
    found = NAME.fullmatch(name)
    if found is None or found[1] != _machine():
        return False
    if found[2] != _namespace():
        return False  # started before, or in another container
    pid, begun = int(found[3]), int(found[4])
    now = _begun(pid)
    if now is not None:
        return begun > 0 and now != begun
    if sys.platform == "win32":
        return False  # to ask there is to end it
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # it is somebody else's
        return False
    return False


@lru_cache(maxsize=1)
def _machine() -> str:
    """A digest of what tells this machine from others that may see the same disk."""
    parts = [platform.node()]
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        with contextlib.suppress(OSError):
            parts.append(Path(path).read_text(encoding="ascii", errors="replace").strip())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


@lru_cache(maxsize=1)
def _namespace() -> str:
    """A digest of this start of the machine, and of the container: numbers of processes are compared within one."""
    parts = [""]
    with contextlib.suppress(OSError):
        parts = [Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"), os.readlink("/proc/self/ns/pid")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _begun(pid: int) -> int | None:
    """When a process began, in ticks since the machine did; -1 if it has ended and nobody asked how; None where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return -1 if fields[0] == "Z" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None
