"""Programs that may die, hang or fill the screen, run in a process of their own."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path


def in_process(command: Sequence[str], folder: Path, timeout: float) -> tuple[str, str]:
    """Run a command in a folder; how it died ("" if it did not) and what it printed.

    Args:
        command: the program and its arguments.
        folder: where it runs.
        timeout: seconds, after which it is stopped.
    """
    try:
        done = subprocess.run(
            list(command),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        return f"was stopped after {timeout:g} s", (error.stdout or b"").decode(errors="replace")
    how = "" if done.returncode == 0 else f"died with signal {-done.returncode}" if done.returncode < 0 else "failed"
    return how, done.stdout.decode(errors="replace")
