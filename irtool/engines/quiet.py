"""Keeping other people's chatter off the user's screen.

Exporters warn, log and print; MNN prints from C++ when it is merely imported. None of it is for the user of irtool,
but it is worth having when something fails, so it is captured and not thrown away.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class Captured:
    """The text that was written while the block ran; `text` is complete once the block is left."""

    text: str = ""

    @property
    def lines(self) -> list[str]:
        """The lines that are not empty, stripped."""
        return [line.strip() for line in self.text.splitlines() if line.strip()]


@contextlib.contextmanager
def captured() -> Iterator[Captured]:
    """Send warnings, log records below ERROR, and both output streams (Python's and the process's own) into a record.

    The redirection is of the whole process: output of other threads during the block is caught as well.
    """
    record, streams = Captured(), io.StringIO()
    disabled = logging.root.manager.disable
    with tempfile.TemporaryFile() as sink, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(max(disabled, logging.WARNING))
        saved = _redirect(sink.fileno())
        try:
            with contextlib.redirect_stdout(streams), contextlib.redirect_stderr(streams):
                yield record
        finally:
            logging.disable(disabled)
            _flush()  # what a log handler buffered belongs to the sink, not to the screen
            for target, copy in saved:
                os.dup2(copy, target)
                os.close(copy)
            sink.seek(0)
            record.text = streams.getvalue() + sink.read().decode(errors="replace")


def _redirect(sink: int) -> list[tuple[int, int]]:
    """Point descriptors 1 and 2 at `sink`; the pairs (descriptor, copy of what it was) undo it."""
    _flush()  # what was written before the block belongs on the screen
    saved = []
    for target in (1, 2):
        try:
            saved.append((target, os.dup(target)))
        except OSError:
            continue  # a daemon may have closed it
        os.dup2(sink, target)
    return saved


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    # printf has a buffer of its own, which in a pipe would be written only at exit, when the screen is back.
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).fflush(None)
