"""The command line, one module for each command."""

from __future__ import annotations

import os
import signal

from irtool.cli.codes import INTERRUPTED


def main() -> None:
    """The console script. torch takes seconds to import: Ctrl-C in that time ends it at once, with one line."""
    signal.signal(signal.SIGINT, _leave)
    from irtool.cli.main import main as run

    signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


def _leave(_signal: int, _frame: object) -> None:
    # Nothing is open yet, and an exception in the middle of a C extension's import would come out as something else.
    os.write(2, b"interrupted: nothing was written.\n")
    os._exit(INTERRUPTED)
