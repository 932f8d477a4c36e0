"""Instruction sets that MNN's library can compute with."""

from __future__ import annotations

import importlib.util
import platform
from pathlib import Path

from irtool.engines.cpu import holds_vnni, lacks_vnni

_LIBRARY = "_mnncengine"
"""The extension module of MNN's wheel that holds the engine."""


def missing_instructions() -> str:
    """Say what int8 misses here, as a clause: code in MNN's library, or instructions of the processor. Empty if neither is known to lack.

    The wheels on the package index are built for AVX2: on x86 they hold no 8-bit dot products (VNNI), whatever the processor offers.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ""
    spec = importlib.util.find_spec(_LIBRARY)
    if spec is not None and spec.origin is not None and not holds_vnni(Path(spec.origin)):
        return "this build of MNN holds no code for 8-bit dot products (VNNI), whatever the processor offers"
    return "this CPU has no VNNI instructions, which is where int8 gains" if lacks_vnni() else ""
