"""Chatter of other people's code never reaches the user's terminal or pipe."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import ctypes, os, sys
from irtool.engines.quiet import captured
libc = ctypes.CDLL(None)
print("before")
libc.printf(b"from C, before\\n")
with captured() as record:
    print("from Python")
    libc.printf(b"from C\\n")
    os.write(2, b"from a descriptor\\n")
print("after", sorted(record.lines))  # C writes what it holds at the end
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs the C library's printf by name")
def test_what_c_buffers_is_captured_too() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}  # it unbuffers C as well
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=900, check=True, env=environment)
    before, chatter, after = done.stdout.splitlines()
    assert (before, chatter) == ("before", "from C, before")
    assert after == "after ['from C', 'from Python', 'from a descriptor']"
    assert done.stderr == ""
