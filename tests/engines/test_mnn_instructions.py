"""What int8 misses in MNN: code in its library or instructions of the processor; and what to do where the processor has them."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import platform
from pathlib import Path
from types import SimpleNamespace

import pytest

from irtool.engines import cpu
from irtool.engines.mnn.instructions import missing_instructions, remedy
from irtool.workflows.quantize import report

KERNELS = {
    "vpdpbusd zmm": "62f26d4850c1",
    "vpdpbusds zmm": "62f25d4851f9",  # MNN's own, in a build with -DMNN_AVX512=ON
    "vpdpbusd ymm": "c4e26d50c1",
    "vpdpbusds ymm": "c4e26d51c1",
    "vpmaddubsw": "c4e26d04c1",
    "vpdpwssd zmm": "62f26d4852c1",  # of 16 bits
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_library_is_told_by_the_bytes_of_its_instructions(kernel: str, tmp_path: Path) -> None:
    library = tmp_path / "engine.so"
    for count, held in ((20, "bus" in kernel and "vpdp" in kernel), (3, False)):  # a few may be chance
        library.write_bytes(b"\x7fELF" + bytes(64) + (bytes.fromhex(KERNELS[kernel]) + bytes(16)) * count)
        cpu.holds_vnni.cache_clear()
        assert cpu.holds_vnni(library) == held


@pytest.mark.parametrize(
    ("kernels", "flags", "misses", "helped"),
    [
        (0, "avx2 avx512f avx512_vnni", "this build of MNN holds no code", True),
        (0, "avx2 avx_vnni", "this build of MNN holds no code", False),  # MNN has no kernels for VNNI of 256 bits
        (0, "avx2", "this build of MNN holds no code", False),
        (0, "", "this build of MNN holds no code", False),  # a system that does not tell
        (20, "avx2 avx512f avx512_vnni", "", False),
        (20, "avx2", "this CPU has no VNNI", False),
    ],
)
def test_what_is_missing_and_what_would_help(
    kernels: int, flags: str, misses: str, helped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "engine.so"
    library.write_bytes(b"\x7fELF" + bytes(64) + (bytes.fromhex(KERNELS["vpdpbusds zmm"]) + bytes(16)) * kernels)
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    monkeypatch.setattr(cpu, "_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: importlib.machinery.ModuleSpec("engine", None, origin=str(library)))
    assert missing_instructions().startswith(misses)
    assert (missing_instructions() == "") == (misses == "")
    assert ("with -DMNN_AVX512=ON (`make cpp MNN_ROOT=FOLDER`)" in remedy()) == helped
    assert (remedy() == "") != helped


def test_the_verdict_ends_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SimpleNamespace(ratio=1.5, inputs=(), account=SimpleNamespace(steps=()))
    row = SimpleNamespace(
        times=lambda _file, _inputs: {"Convolution": 2.0}, int8=SimpleNamespace(missing=lambda: "no wheels", remedy=lambda: "Walk.")
    )
    monkeypatch.setattr(report, "ENGINES", {"mnn": row})
    said = report._speed(slow, SimpleNamespace(weights_only=False, engine="mnn"), Path("int8.mnn"))
    assert said.endswith("; no wheels). Walk.")
    row.int8.remedy = lambda: ""
    assert report._speed(slow, SimpleNamespace(weights_only=False, engine="mnn"), Path("int8.mnn")).endswith("; no wheels).")
