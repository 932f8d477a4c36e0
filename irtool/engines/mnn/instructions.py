"""Instruction sets that MNN's library can compute with."""

from __future__ import annotations

import importlib.util
import platform
from pathlib import Path

from irtool.engines.cpu import has_wide_vnni, holds_vnni, lacks_vnni

_LIBRARY = "_mnncengine"
"""The extension module of MNN's wheel that holds the engine."""


def missing_instructions() -> str:
    """Say what int8 misses here, as a clause: code in MNN's library, or instructions of the processor. Empty if neither is known to lack.

    The wheels on the package index are built for AVX2: on x86 they hold no 8-bit dot products (VNNI), whatever the processor offers.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ""
    if _library_lacks_vnni():
        return "this build of MNN holds no code for 8-bit dot products (VNNI), whatever the processor offers"
    return "this CPU has no VNNI instructions, which is where int8 gains" if lacks_vnni() else ""


def remedy() -> str:
    """Say how the same file is run with the code that MNN's library misses, as a sentence. Empty where that would not help: MNN's VNNI is of AVX-512."""
    if not (has_wide_vnni() and _library_lacks_vnni()):
        return ""
    return "This CPU has them: the C++ runner runs the same file in an MNN built from its source with -DMNN_AVX512=ON (`make cpp MNN_ROOT=FOLDER`)."


def _library_lacks_vnni() -> bool:
    spec = importlib.util.find_spec(_LIBRARY)
    return spec is not None and spec.origin is not None and not holds_vnni(Path(spec.origin))
