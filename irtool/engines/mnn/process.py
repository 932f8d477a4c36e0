"""Starting MNN in a process of its own, and making sense of what it prints there."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from irtool.engines.isolated import in_process
from irtool.errors import FileError

_CHILD = Path(__file__).with_name("child.py")
# Lines of the converter that say nothing about a failure, and the stamp before the others.
_NOISE = re.compile(
    r"The device supports|^Start to|ONNX Model (ir|opset) version|^inputTensors|^outputTensors|Converted Success|please check your file"
)
_STAMP = re.compile(r"^(\[[\d:]+\]\s*)?(:\d+:\s*)?(\[ERROR\]\s*)?")
# A line about an operator that MNN does not have.
UNSUPPORTED = re.compile(r"(?:not support|unsupported|can't convert|don't support)", re.IGNORECASE)


def in_child(arguments: Sequence[str], folder: Path, timeout: float) -> tuple[str, str]:
    """Run the child in a folder; how it died ("" if it did not) and what it printed.

    Raises:
        FileError: the folder is gone: without this, all that is seen is MNN missing its files.
    """
    outcome = _in_child(arguments, folder, timeout) if folder.is_dir() else None
    if outcome is None or not folder.is_dir():
        raise FileError(
            "the temporary folder was removed while it was in use",
            where=str(folder),
            remedy="Stop what cleans up there, or set TMPDIR to another folder.",
        )
    return outcome


def _in_child(arguments: Sequence[str], folder: Path, timeout: float) -> tuple[str, str]:
    return in_process([sys.executable, str(_CHILD), *arguments], folder, timeout)  # our own file, under our own interpreter


def meaning(said: str) -> str:
    """The last line that says something, without its time stamp; a line about an unsupported operator wins."""
    lines = [_STAMP.sub("", line.strip()) for line in said.splitlines()]
    telling = [line for line in lines if line and not _NOISE.search(line)]
    unsupported = [line for line in telling if UNSUPPORTED.search(line)]
    return (unsupported or telling or ["it said nothing"])[-1][:300]
