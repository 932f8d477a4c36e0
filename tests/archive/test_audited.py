"""The watch itself: what it must notice, and that it notices nothing else."""

from __future__ import annotations

import ctypes
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from audited import Watch


def add(a: int, b: int) -> int:
    return a + b


def read(path: str) -> int:
    return len(Path(path).read_text())


def try_import(name: str) -> None:
    importlib.import_module(name)


def start(program: str) -> None:
    subprocess.run([program], check=True)


def fill(size: int) -> int:
    return len(bytearray(size))


def crash() -> None:
    ctypes.string_at(0)


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def leave(code: int) -> None:
    os._exit(code)


@pytest.fixture(scope="module")
def watch() -> Iterator[Watch]:
    with Watch() as made:
        yield made


def test_an_honest_call(watch: Watch) -> None:
    report = watch.call(add, 2, 3)
    assert (report.ended, report.value, report.error, report.clean) == ("returned", 5, "", True)


def test_files(watch: Watch, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("four")
    assert watch.call(read, str(path)).opened == (str(path.resolve()),)
    for allowed in (path, tmp_path):
        report = watch.call(read, str(path), allowed=[str(allowed)])
        assert report.clean, report
        assert report.value == 4
    assert watch.call(read, str(tmp_path / "absent")).opened


def test_imports(watch: Watch) -> None:
    report = watch.call(try_import, "antigravity_is_not_here")
    assert report.ended == "raised"
    assert report.modules == ("antigravity_is_not_here",)
    assert "colorsys" in watch.call(try_import, "colorsys").modules


def test_programs(watch: Watch) -> None:
    assert any(event.startswith("subprocess.Popen") for event in watch.call(start, sys.executable + "-not-there").events)


def test_memory(watch: Watch) -> None:
    report = watch.call(fill, 1 << 30, memory=1 << 28)
    assert report.ended == "raised"
    assert "MemoryError" in report.error
    report = watch.call(fill, 1 << 26)
    assert report.value == 1 << 26
    assert sys.platform != "linux" or report.memory > 1 << 25


def test_ends(watch: Watch) -> None:
    assert watch.call(crash).ended == "signal SIGSEGV"
    assert watch.call(sleep, 1000, seconds=0.2).ended == "out of time"
    assert watch.call(leave, 3).ended == "exit code 3"
    assert watch.call(add, 1).error.startswith("TypeError")
    assert watch.call(add, 1, 1).clean  # and the watch goes on
