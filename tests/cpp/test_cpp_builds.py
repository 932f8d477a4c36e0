"""Builds of the C++ runner: against an MNN SDK, against MNN's wheel, and what `make cpp` asks for."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cpp_runner import SOURCE, by_python, numbers


def configured(build: Path, *options: str) -> str:
    """What cmake says about a build, in one line; it begins with "failed" where cmake does."""
    call = ["cmake", "-S", str(SOURCE), "-B", str(build), "-DCMAKE_BUILD_TYPE=Debug", *options]
    done = subprocess.run(call, capture_output=True, text=True)
    return " ".join((done.stdout if done.returncode == 0 else f"failed {done.stderr}").split())


def version(sdk: Path) -> str:
    """The version in an SDK's headers."""
    return ".".join(re.findall(r"#define MNN_VERSION_[A-Z]+ (\d+)", (sdk / "include" / "MNN" / "MNNDefine.h").read_text()))


def test_a_build_with_an_sdk(sdk: Path, models: Path, pictures: Path, tmp_path: Path) -> None:
    for part in ("include", "lib"):
        shutil.copytree(sdk / part, tmp_path / "half" / part)
        assert (said := configured(tmp_path, f"-DMNN_ROOT={tmp_path / 'half'}")).startswith("failed"), said
        assert "is no MNN SDK: it needs include/MNN/Interpreter.hpp and libMNN in lib" in said
        shutil.rmtree(tmp_path / "half" / part)
    shutil.copytree(sdk, tmp_path / "old")
    (tmp_path / "old" / "include" / "MNN" / "MNNDefine.h").write_text("#define MNN_PUBLIC\n")
    assert "old is MNN 1: the runner needs MNN 2 or newer" in configured(tmp_path, f"-DMNN_ROOT={tmp_path / 'old'}")
    assert f"MNN {version(sdk)}: {sdk / 'lib' / 'libMNN.so'}" in configured(tmp_path, f"-DMNN_ROOT={sdk}")
    assert subprocess.run(["cmake", "--build", str(tmp_path), "--parallel", "2"], capture_output=True).returncode == 0
    call = [str(tmp_path / "irtool-run"), str(models / "float.mnn"), str(pictures), "--raw"]
    got = numbers(subprocess.run(call, capture_output=True, text=True, env={}))
    expected = by_python(models / "float.mnn", pictures)
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
    assert "MNN in the wheel: " in configured(tmp_path, "-DMNN_ROOT=", f"-DPython={sys.executable}"), (
        "an SDK of an earlier call is forgotten"
    )


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_passes_the_sdk_on() -> None:
    def commands(*words: str, **environment: str) -> list[list[str]]:
        clean = {name: value for name, value in os.environ.items() if name not in ("MNN_ROOT", "MAKEFLAGS")}
        call = ["make", "--no-print-directory", "--dry-run", "cpp", *words]
        done = subprocess.run(call, cwd=SOURCE.parent, env=clean | environment, capture_output=True, text=True, check=True)
        return [shlex.split(line) for line in done.stdout.splitlines()]

    for found in (commands("MNN_ROOT=/some where/mnn"), commands(MNN_ROOT="/some where/mnn")):
        assert [call[:2] for call in found] == [["cmake", "-S"], ["cmake", "--build"]], "an SDK needs no Python"
        assert "-DMNN_ROOT=/some where/mnn" in found[0]
    assert "-DMNN_ROOT=" in next(call for call in commands() if call[:2] == ["cmake", "-S"])
