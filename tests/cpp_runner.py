"""What tests of the C++ runner share: the settings of its model, how it is called, and how its answers are read."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from irtool.engines import MnnSession
from irtool.train import Preprocessing
from irtool.train.data.image_files import FolderTree, decode

SOURCE = Path(__file__).resolve().parents[1] / "cpp"
PREPROCESSING = Preprocessing((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), (32, 32))
CLASSES = ["one", 'tw"o', "drei", "vier", "fünf", "six", "seven", "eight", "nine", "ten"]
Runner = Callable[..., subprocess.CompletedProcess[str]]


def by_python(model: Path, folder: Path) -> np.ndarray:
    """Logits of all pictures of a folder, in the order of their names, one image at a time."""
    tree, session = FolderTree(folder), MnnSession(model, 1)
    pixels = [torch.from_numpy(decode(tree, name, 3, (32, 32)))[None] for name in tree.names()]
    return np.concatenate([session.run(PREPROCESSING.normalise(image).numpy())[0] for image in pixels])


def numbers(done: subprocess.CompletedProcess[str]) -> np.ndarray:
    assert (done.returncode, done.stderr) == (0, "")
    return np.array([[float(value) for value in line.split()] for line in done.stdout.splitlines()])


def refused(done: subprocess.CompletedProcess[str], code: int = 1) -> str:
    """The complaint of a run that must fail: one line."""
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Sanitizer" not in done.stderr
    return done.stderr
