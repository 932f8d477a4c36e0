"""The C++ runner beside Python: logits on test images, and latency in rounds that time both.

Example: python bench/cpp_parity.py build/cpp/irtool-run small/int8.mnn --data ../shared/data/cifar10-jpeg.zip
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch

from irtool.engines import MnnSession, latency
from irtool.train import Preprocessing
from irtool.train.data.image_files import FolderTree, decode


def pictures(data: Path, folder: Path, count: int) -> None:
    """Test images of a zip, spread over its classes."""
    with zipfile.ZipFile(data) as archive:
        names = sorted(name for name in archive.namelist() if re.search(r"(^|/)test/.*\.(jpe?g|png)$", name, re.IGNORECASE))
        for number, index in enumerate(np.linspace(0, len(names) - 1, min(count, len(names))).astype(int)):
            (folder / f"{number:05}{Path(names[index]).suffix}").write_bytes(archive.read(names[index]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runner", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures(options.data, folder, options.images)
        for model in options.models:
            compare(options.runner, model, folder, options.rounds)


def compare(runner: Path, model: Path, folder: Path, rounds: int) -> None:
    """Print one line about a model."""
    preprocessing = Preprocessing.from_dict(json.loads(model.with_suffix(".json").read_text())["preprocessing"])
    tree, session = FolderTree(folder), MnnSession(model, 1)
    pixels = (torch.from_numpy(decode(tree, image, preprocessing.channels, preprocessing.size))[None] for image in tree.names())
    python = np.concatenate([session.run(preprocessing.normalise(image).numpy())[0] for image in pixels])
    said = subprocess.run([runner, model, folder, "--raw"], capture_output=True, text=True, check=True).stdout
    cpp = np.array([[float(value) for value in line.split()] for line in said.splitlines()])
    x, ratios, times = np.zeros((1, *preprocessing.input_shape), np.float32), [], []
    for _ in range(rounds):
        timed = subprocess.run([runner, model, "--bench", "200", "--json"], capture_output=True, text=True, check=True)
        times.append(json.loads(timed.stdout)["median_ms"])
        ratios.append(times[-1] / latency(session, [x], runs=200, warmup=10).median_ms)
    same = (python.argmax(1) == cpp.argmax(1)).sum()
    print(
        f"{model.name}: {same} of {len(cpp)} top-1 the same, logits differ by at most {np.abs(cpp - python).max():.1e}; "
        f"runner {np.median(times):.3f} ms, {np.median(ratios):.3f} of Python's time (median of {rounds} rounds)"
    )


if __name__ == "__main__":
    main()
