"""The core works with nothing but its own dependencies, and what is missing is named with the command that brings it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from irtool.errors import DataError, IrtoolError, MissingPackageError
from irtool.extras import EXTRAS, absent, needed

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Imports of these fail as they do where a package is not installed.
ALONE = f"""
import importlib.machinery, sys
class Missing(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition('.')[0] in {sorted([*EXTRAS, "_tools"])} else importlib.machinery.PathFinder.find_spec(name, path, target)
sys.meta_path[:] = [Missing if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
"""


def _run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", ALONE + script], cwd=folder, capture_output=True, text=True, check=False)


def test_the_core_traces_plans_prunes_folds_exports_and_compresses_alone(tmp_path: Path) -> None:
    script = f"""
import torch, irtool
from irtool.cli.main import run
x = torch.randn(1, 3, 32, 32)
graph = irtool.trace(irtool.models.VGG(11, width=0.0625), x)
pruned = irtool.prune(graph, irtool.plan(graph, ratio=0.5))
irtool.export_onnx(irtool.fold_batchnorm(pruned), 'net.onnx')
irtool.save(pruned, 'net.safetensors')
assert irtool.load('net.safetensors').text() == pruned.text()
print(irtool.diff(graph, irtool.load_onnx('net.onnx')).same)
assert run(['compress', 'net.onnx', '--out', 'small', '--ratio', '0.5', '--runs', '2']) == 0
assert run(['verify', 'small']) == 0
assert not [name for name in sys.modules if name.partition('.')[0] in {sorted(EXTRAS)}]
"""
    done = _run(script, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "left out: writing and running MNN files, which needs MNN: pip install 'irtool[mnn]'" in done.stdout
    assert (tmp_path / "small" / "report.html").is_file()


CALLS = {
    "train": ("run(['train', 'VGG:depth=11,width=0.0625', '--data', 'digits', '--out', 'o', '-q'])", "scikit-learn"),
    "mnn": ("run(['export', 'VGG:depth=11,width=0.0625', '-i', '1x3x32x32', '--out', 'net.mnn', '-q'])", "MNN is not installed"),
    "openvino": ("run(['verify', 'net.onnx', '--engine', 'openvino', '-q'])", "OpenVINO is not installed"),
    "ncnn": ("run(['export', 'VGG:depth=11,width=0.0625', '-i', '1x3x32x32', '--out', 'net.param', '-q'])", "ncnn is not installed"),
}


def test_what_is_missing_is_named_with_the_command_that_brings_it(tmp_path: Path) -> None:
    script = "import torch, irtool\nfrom irtool.cli.main import run\nirtool.export_onnx(irtool.trace(irtool.models.VGG(11, width=0.0625), torch.randn(1, 3, 32, 32)), 'net.onnx')\n"
    done = _run(script + "\n".join(f"assert {call} == 1" for call, _ in CALLS.values()), tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(CALLS)
    for line, (extra, (_, what)) in zip(lines, CALLS.items(), strict=True):
        assert what in line
        assert f"pip install 'irtool[{extra}]'" in line
    assert not (tmp_path / "o").exists()


BY_NAME_ALONE = {"ncnn"}
"""Extras that `all` leaves out: what one engine needs is 115 MB."""


@pytest.mark.parametrize("module", EXTRAS)
def test_each_package_is_brought_by_the_extra_that_is_named(module: str) -> None:
    extra = EXTRAS[module]
    brought = [re.split(r"[><=\[]", text)[0].lower() for text in PROJECT["optional-dependencies"][extra.extra]]
    assert extra.package.lower() in brought
    assert (extra.extra in next(text for text in PROJECT["optional-dependencies"]["all"] if text.startswith("irtool["))) != (
        extra.extra in BY_NAME_ALONE
    )
    assert extra.package.lower() not in [re.split(r"[><=\[]", text)[0].lower() for text in PROJECT["dependencies"]]


def test_an_absent_package_and_a_broken_one_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        MissingPackageError, match=r"^drawing curves needs matplotlib, which is not installed\. pip install 'irtool\[report\]'\.$"
    ):
        needed("matplotlib.figure")
    monkeypatch.setattr("importlib.import_module", lambda name: (_ for _ in ()).throw(ImportError("libz.so: not found")))
    with pytest.raises(DataError, match=r"^reading and writing pictures needs Pillow, which cannot be imported \(libz\.so: not found\)\."):
        needed("PIL.Image", DataError)
    assert issubclass(MissingPackageError, IrtoolError)
    assert issubclass(MissingPackageError, ImportError)
    assert absent() == []


def test_the_floors_are_those_that_are_tested() -> None:
    listed = dict(line.lower().split("==") for line in (ROOT / "constraints-oldest.txt").read_text().splitlines() if "==" in line)
    texts = [
        *PROJECT["dependencies"],
        *(text for extra in ("train", "mnn", "report", "tensorboard") for text in PROJECT["optional-dependencies"][extra]),
    ]
    floors = {name.lower(): floor for name, floor in (re.match(r"([\w-]+)>=([\d.]+)", text).groups() for text in texts)}  # type: ignore[union-attr]
    assert floors.keys() == listed.keys()
    for name, floor in floors.items():
        assert (listed[name] + ".").startswith(floor + "."), name


def test_what_is_left_out_at_the_floors_exists() -> None:
    for line in (ROOT / "tests" / "oldest.txt").read_text().splitlines():
        file, _, name = line.removeprefix("--deselect=").partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text(), line
