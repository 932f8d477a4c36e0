"""Work on files that is ended by SIGKILL at its n-th operation: a function for `audited.Watch`, and the work."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import irtool
from irtool.atomic_files import locked, replacing
from irtool.cli.main import run as command
from irtool.cli.train import keep
from irtool.commit import restore
from irtool.train import History, load_data
from irtool.train.history import Record
from irtool.workflows.folders.output_folder import COMPRESS, output_folder

_CHANGES = frozenset(
    {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.link", "os.symlink", "os.utime", "shutil.rmtree"}
)
RECIPE = 'model = "VGG:depth=11,width=0.0625"\ndata = "digits"\nimage_size = 16\nlimit = 20\n[[step]]\ndo = "fold"\nname = "{name}"\n'
OLD = {"report.json": '{"chain": "old"}', "plan.json": "old", "model.onnx": "old", "model.mnn": "old", "report.html": "old"}
NEW = {"report.json": '{"chain": "new"}', "plan.json": "new", "model.onnx": "new", "report.html": "new"}
"""A newer result, which has no MNN file."""


def killed_at(number: int, work: str, folder: str) -> int:
    """Do the work in a folder, and be killed before the n-th change of a file below it; not at all if there are fewer.

    Returns:
        How many changes there were.
    """
    left = _kill_at(number, os.path.realpath(folder))
    WORK[work](Path(folder))
    return number - left()


def _kill_at(number: int, folder: str) -> Callable[[], int]:
    left = number

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event == "open":
            changes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else:
            changes = event in _CHANGES
        if changes and isinstance(arguments[0], str | os.PathLike) and os.path.abspath(arguments[0]).startswith(folder):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return lambda: left


def outputs(folder: Path, files: dict[str, str] = NEW) -> None:
    with output_folder(folder, COMPRESS) as new:
        for name, text in files.items():
            (new / name).write_text(text)


def nested(folder: Path) -> None:
    """A result in folders of its own, as the demo's."""
    with output_folder(folder) as new:
        for name in ("a", "b"):
            (new / name).mkdir()
            (new / name / "file").write_text("new")


def read(folder: Path) -> None:
    restore(folder)


def one_file(folder: Path) -> None:
    with replacing(folder / "file.txt") as temporary:
        temporary.write_text("new")


def net(seed: int) -> irtool.FxGraph:
    torch.manual_seed(seed)
    return irtool.trace(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)).eval(), torch.zeros(2, 1, 8, 8))


def trained(folder: Path, seed: int = 1) -> None:
    """The end of a training."""
    record = Record(1, 0.5, 0.5, 0.5, 0.5, 0.1, float(seed), 1.0)
    with locked(folder):
        keep(net(seed), History({}, (record,)), load_data("digits", image_size=8, limit=20), folder, {"seed": seed})


def large_model(folder: Path, seed: int = 1) -> None:
    """An .onnx file with its weights beside it."""
    from irtool.hosts.onnx.files import file as onnx_file

    graph = irtool.load_onnx(folder.parent / f"{seed}.onnx")
    onnx_file.INLINE_LIMIT = 100
    irtool.save_onnx(graph, folder / "m.onnx")


def recipe(folder: Path, name: str = "new") -> None:
    path = folder.parent / f"{name}.toml"
    path.write_text(RECIPE.format(name=name))
    assert command(["compress", "--recipe", str(path), "--out", str(folder)]) == 0


def compress(folder: Path, ratio: float = 0.5) -> None:
    """A whole run, with every file that it writes."""
    arguments = ["compress", "VGG:depth=11,width=0.0625", "-i", "2x3x32x32", "--runs", "1", "--ratio", str(ratio), "--out", str(folder)]
    assert command(arguments) == 0


WORK: dict[str, Callable[[Path], None]] = {
    "outputs": outputs,
    "nested": nested,
    "read": read,
    "one file": one_file,
    "training": trained,
    "large model": large_model,
    "recipe": recipe,
    "compress": compress,
}


def prepare() -> None:
    torch.set_num_threads(1)
    net(0).run(torch.zeros(2, 1, 8, 8))
    load_data("digits", image_size=8, limit=20)
