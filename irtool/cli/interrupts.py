"""Ctrl-C while modules are imported, torch among them, which takes seconds."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

from irtool.cli.codes import INTERRUPTED


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process with one line for the length of the block, in which nothing may be open.

    An exception in the middle of a C extension's import would come out as something else.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _leave(_signal: int, _frame: object) -> None:
    os.write(2, b"interrupted: nothing was written.\n")
    os._exit(INTERRUPTED)
