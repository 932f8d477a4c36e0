"""ncnn in a process of its own: `python child.py MODEL.param IN.npz OUT.npz` runs a model once.

A damaged file can end the process. It imports nothing of irtool, which would take longer than the run. Without arrays in the first
file it runs on zeros of the sizes that the model states, or 32.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any


def main(model: str, inputs: str, outputs: str) -> None:
    """Run a model on the arrays arr_0, arr_1 ... of an .npz file, sample by sample, and write its results the same way."""
    import ncnn  # type: ignore[import-not-found,unused-ignore]  # of an extra
    import numpy as np

    net = ncnn.Net()
    net.opt.use_vulkan_compute, net.opt.num_threads, net.opt.use_winograd_convolution = False, 1, False
    for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_packed", "use_bf16_storage"):
        setattr(net.opt, name, False)
    if net.load_param(model) or net.load_model(str(Path(model).with_suffix(".bin"))):
        sys.exit("cannot load it")
    held = np.load(inputs)
    arrays = [held[f"arr_{index}"] for index in range(len(held.files))] or _zeros(model)
    names = net.output_names()
    if all(re.fullmatch(r"out\d+", name) for name in names):
        names = sorted(names, key=lambda name: int(name[3:]))
    results = []
    for index in range(len(arrays[0])):
        extractor = net.create_extractor()
        for name, array in zip(net.input_names(), arrays, strict=True):
            extractor.input(name, ncnn.Mat(np.ascontiguousarray(array[index])).clone())
        found = [extractor.extract(name) for name in names]
        if any(failed for failed, _ in found):
            sys.exit("it has no result")
        results.append([np.array(mat) for _, mat in found])
    np.savez(outputs, *(np.stack(one) for one in zip(*results, strict=True)))


def _zeros(model: str) -> list[Any]:
    """One sample of zeros for each `Input` line of a model's text."""
    import numpy as np

    found = []
    for words in (line.split() for line in Path(model).read_text(encoding="utf-8").splitlines()):
        if words[:1] == ["Input"]:
            sizes = dict(word.split("=", 1) for word in words[5:])
            axes = [int(sizes[key]) for key in ("2", "11", "1", "0") if key in sizes] or [3, 32, 32]
            found.append(np.zeros((1, *axes), np.float32))
    return found


if __name__ == "__main__":
    # Started by path, Python looks for imports in this folder first, where a module could have an installed one's name.
    sys.path = [entry for entry in sys.path if not entry or Path(entry).resolve() != Path(__file__).resolve().parent]
    main(*sys.argv[1:])
