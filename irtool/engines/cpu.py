"""Instructions of this machine's processor, and those that an engine's library uses."""

from __future__ import annotations

import contextlib
import functools
import mmap
import platform
import re
from pathlib import Path

_INFO = Path("/proc/cpuinfo")
_EVEN = bytes(range(2, 256, 16))
"""First payload bytes of an EVEX prefix whose opcode map is 0F38."""
_VEX = bytes(range(2, 256, 32))
"""First payload bytes of a VEX prefix with that map."""
_UNPREFIXED = bytes(byte for byte in range(256) if byte & 0x87 == 0x05)
"""Second payload bytes of both: W = 0 and the prefix 66."""
_WIDE = bytes(byte for byte in range(256) if byte & 0x60 == 0x40)
"""Third payload bytes of EVEX: 512 bits."""
_VPDPBUSD = re.compile(
    b"\x62[%b][%b][%b][\x50\x51]|\xc4[%b][%b][\x50\x51]" % (*map(re.escape, (_EVEN, _UNPREFIXED, _WIDE, _VEX, _UNPREFIXED)),), re.DOTALL
)
"""The instructions that multiply 8-bit integers and add four products, by their encodings in Intel's manual (volume 2, VPDPBUSD and VPDPBUSDS).
MNN's kernels use the second alone, which cuts the sum off at 32 bits; onnxruntime's use both."""
_CHANCE = 8
"""Matches of five or four bytes that may be chance in a library of tens of megabytes; kernels hold a hundred and more."""


def processor() -> str:
    """The name of the processor's model."""
    return _field("model name") or platform.processor() or platform.machine()


def lacks_vnni() -> bool:
    """Whether this is an x86 processor that is known to have no 8-bit dot products."""
    flags = _field("flags")
    return bool(flags) and "vnni" not in flags


def has_wide_vnni() -> bool:
    """Whether this is an x86 processor that is known to have 8-bit dot products of 512 bits (AVX-512 VNNI)."""
    return "avx512_vnni" in _field("flags").split()


@functools.cache
def holds_vnni(library: Path) -> bool:
    """Whether a library holds code with 8-bit dot products for x86, told by the bytes of that instruction.

    Args:
        library: a shared library or extension module.

    Raises:
        OSError: it cannot be read.
    """
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for count, _ in enumerate(_VPDPBUSD.finditer(content), 1):
            if count > _CHANCE:
                return True
    return False


def _field(name: str) -> str:
    """The first line of that name in what Linux tells about processors; empty if there is none."""
    with contextlib.suppress(OSError, ValueError):
        for line in _INFO.read_text(encoding="utf-8").splitlines():
            if line.startswith(name):
                return line.partition(":")[2].strip()
    return ""
