"""Reading .onnx files that ask for the impossible: each in a process of its own that is watched, with little memory."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from audited import Report, Watch
from hostile_onnx import CASES, LARGE, Maker, loop, model, node, same_bytes, write

import irtool
from irtool.errors import GraphError

MEMORY = 4 << 30
"""Bytes of address space. What is computed while a file is read may be 1 GiB, and numpy holds some of it twice."""
RESIDENT = 3 << 29


def prepare(scratch: str) -> None:
    """Imports of irtool's when it first reads a file, and first computes a constant, are nobody's fault."""
    tempfile.tempdir = scratch
    shape = [node("Shape", ["x"], ["s"]), node("ConstantOfShape", ["s"], ["c"]), node("Add", ["x", "c"], ["y"])]
    irtool.load_onnx(write(Path(scratch), model(shape)))


def load(path: str) -> int:
    return len(irtool.load_onnx(path).nodes)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def watch(scratch: Path) -> Iterator[Watch]:
    with Watch(prepare, str(scratch)) as made:
        yield made


def read(watch: Watch, scratch: Path, make: Maker, folder: Path) -> Report:
    """Outcome of a file. A temporary folder, and the process that first runs a model, are irtool's own doing."""
    place = folder / "model"
    place.mkdir()
    report = watch.call(load, str(make(place)), allowed=[str(place), str(scratch), os.devnull], memory=MEMORY)
    assert not report.modules, report
    assert not [path for path in report.opened if not path.startswith(sys.prefix)], report
    assert all(event.startswith(OWN) for event in report.events), report
    assert report.memory < RESIDENT, report
    return report


# The last three start a process: which of them is seen depends on the release of Python (3.13 calls posix_spawn).
OWN = (
    "os.mkdir",
    "os.listdir",
    "os.scandir",
    "os.remove",
    "os.rmdir",
    "shutil.rmtree",
    "tempfile.mkdtemp",
    "subprocess.Popen",
    "os.posix_spawn",
    "os.fork",
)


@pytest.mark.parametrize("name", CASES)
def test_what_asks_too_much_is_refused(name: str, watch: Watch, scratch: Path, tmp_path: Path) -> None:
    report = read(watch, scratch, CASES[name], tmp_path)
    assert report.ended == "raised", report
    assert report.error.startswith(("FileError: ", "GraphError: ")), report
    assert len(report.error.splitlines()) == 1
    assert report.error.rstrip(".") == report.error[:-1]  # a remedy, in a sentence


@pytest.mark.parametrize("name", LARGE)
def test_what_is_large_is_read(name: str, watch: Watch, scratch: Path, tmp_path: Path) -> None:
    report = read(watch, scratch, LARGE[name], tmp_path)
    assert (report.ended, report.error) == ("returned", ""), report


def test_the_time_of_a_first_run_is_that_of_the_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("irtool.hosts.onnx.trial.SECONDS", 1)
    with pytest.raises(GraphError, match=r"does not end: it was stopped after 1 s of CPU time\. Check the file"):
        irtool.load_onnx(write(tmp_path, loop(2**60, growing=False)))


def test_weights_may_share_bytes(tmp_path: Path) -> None:
    """Tied weights do."""
    graph = irtool.load_onnx(same_bytes(tmp_path, 2, True))
    assert len(graph.nodes) > 2
