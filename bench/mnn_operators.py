"""Whether MNN computes each operator right where irtool places integers: MNN against onnxruntime with the same scales.

    python bench/mnn_operators.py              all: some 700 convolutions, 100 pools and 60 operators between layers; minutes
    python bench/mnn_operators.py pools        one of the kinds

Each operator stands between convolutions in a small net with random weights. Both int8 results are compared with the float model's: MNN
may be worse than onnxruntime's simulation by TOLERANCE decibels. What it is worse by more is listed, unless both are
better than GOOD. An operator that is placed in float is right trivially, and counted apart.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

import irtool
from irtool.atomic_files import replacing
from irtool.engines import MnnSession, OnnxSession
from irtool.engines.mnn.int8 import export_mnn_int8
from irtool.engines.mnn.int8_policy import MNN_POLICY
from irtool.engines.onnxruntime.calibrate import calibrate
from irtool.engines.onnxruntime.prepare import prepared
from irtool.engines.onnxruntime.qdq import to_qdq
from irtool.errors import IrtoolError
from irtool.quant import Scheme, make_recipe, place
from irtool.workflows.quantize.sensitivity import sqnr

RESULTS = Path(__file__).parent / "results" / "mnn_operators.json"
TOLERANCE, GOOD = 4.0, 50.0
CHANNELS = 8
SIZES = ((1, 1), (2, 2), (3, 3), (5, 7), (8, 8), (16, 5))
SCHEME = Scheme("int8", symmetric=True)
REVERSED = list(range(CHANNELS))[::-1]


class Between(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@dataclass(frozen=True)
class Case:
    """Layers between the first convolution and the last two, for images of a size."""

    name: str
    size: tuple[int, int]
    middle: tuple[nn.Module, ...]


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "concat": lambda x: torch.cat([x[:, 4:], x[:, :4]], 1),
    "concat, height": lambda x: torch.cat([x, x], 2),
    "concat of x and -x": lambda x: torch.cat([x, -x], 3),
    "slice": lambda x: x[:, :, 1:],
    "slice with steps": lambda x: x[:, :, ::2],
    "transpose": lambda x: x.transpose(2, 3),
    "channel shuffle": lambda x: x.view(x.shape[0], 2, 4, x.shape[2], x.shape[3]).transpose(1, 2).flatten(1, 2),
    "pixel shuffle": lambda x: F.pixel_shuffle(x.repeat(1, 4, 1, 1), 2),
    "split, add, multiply": lambda x: torch.cat([x[:, :4] + x[:, 4:], x[:, :4] * x[:, 4:]], 1),
    "gate": lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "square": lambda x: x * x,
    "subtract": lambda x: x - x[:, REVERSED],
    "pad": lambda x: F.pad(x, (1, 1, 1, 1)),
    "maximum": lambda x: torch.max(x, x.transpose(2, 3)),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "clip": lambda x: x.clamp(-0.3, 0.4),
    "negate": lambda x: -F.relu(x),
    "add a number": lambda x: x + 0.5,
    "multiply by a number": lambda x: x * 2.5,
    "average pool": lambda x: F.avg_pool2d(x, 2),
    "index": lambda x: x[:, [1, 0, 3, 2, 5, 4, 7, 6]],
    "softmax": lambda x: F.softmax(x, 1),
    "hardswish": F.hardswish,
    "silu": F.silu,
    "relu6": F.relu6,
    "leaky relu": lambda x: F.leaky_relu(x, 0.1),
    "gelu": F.gelu,
    "tanh": torch.tanh,
}


def functions() -> Iterator[Case]:
    """Operators between layers, of signed tensors and of rectified ones."""
    for (name, function), rectified in itertools.product(FUNCTIONS.items(), (False, True)):
        middle = (nn.Conv2d(CHANNELS, CHANNELS, 1), *([nn.ReLU()] if rectified else []), Between(function))
        yield Case(f"{name}{' of relu' if rectified else ''}", (6, 6), middle)


def convolutions() -> Iterator[Case]:
    """Kernels, strides, padding, dilation and groups."""
    for size, k, s, p, d, g in itertools.product(SIZES, (1, 2, 3, 5, 7), (1, 2, 3), (0, 1, 3), (1, 2), (1, 2, CHANNELS)):
        span = d * (k - 1) + 1
        if min(size) + 2 * p >= span > p and (d == 1 or k > 1):
            yield Case(
                f"kernel {k} stride {s} pad {p} dilation {d} groups {g}", size, (nn.Conv2d(CHANNELS, CHANNELS, k, s, p, d, g), nn.ReLU())
            )


def pools() -> Iterator[Case]:
    """Max pools of rectified tensors, windows larger than the image among them."""
    windows = ((3, 1, 1), (3, 2, 1), (2, 2, 0), (3, 2, 0), (5, 1, 2), (9, 1, 4), (13, 1, 6), (3, 1, 0), (2, 1, 1))
    for (k, s, p), side in itertools.product(windows, (1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 14)):
        if side + 2 * p >= k:
            yield Case(f"max pool {k} stride {s} pad {p}", (side, side), (nn.ReLU(), nn.MaxPool2d(k, s, p)))


KINDS: dict[str, Callable[[], Iterator[Case]]] = {"convolutions": convolutions, "pools": pools, "functions": functions}


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Signal to noise of MNN and of the simulation, in decibels, or the error."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, CHANNELS, 3, padding=1), *case.middle, nn.Conv2d(CHANNELS, CHANNELS, 1), nn.Conv2d(CHANNELS, 4, 1))
    row: dict[str, Any] = {"case": case.name, "size": list(case.size)}
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(4, 3, *case.size, generator=generator).numpy() for _ in range(6)]
    try:
        irtool.export_onnx(irtool.trace(net.eval(), torch.zeros(4, 3, *case.size)), folder / "float.onnx")
        model = prepared(onnx.load(str(folder / "float.onnx")))
        placement = place(model, MNN_POLICY)
        recipe = make_recipe(model, placement, calibrate(model, placement.tensors, batches, threads=1), SCHEME)
        export_mnn_int8(model, recipe, folder / "int8.mnn")
        expected = OnnxSession(folder / "float.onnx", 1).run(batches[0])[0]
        row["mnn"] = sqnr(MnnSession(folder / "int8.mnn", 1).run(batches[0])[0], expected)
        row["simulation"] = sqnr(simulated(to_qdq(model, recipe), batches[0]), expected)
    except IrtoolError as error:
        row["error"] = str(error)
    return row


def simulated(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """The model in onnxruntime, each quantise step where it stands."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
    return found


def is_worse(row: dict[str, Any]) -> bool:
    """Whether MNN failed, or is worse than what was promised."""
    return "error" in row or (row["mnn"] < row["simulation"] - TOLERANCE and row["mnn"] < GOOD)


def main() -> None:
    """Measure, print what is worse, and end with 1 if anything is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], help="all if left out")
    parser.add_argument("--limit", type=int, help="so many cases of each kind, evenly spread")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kinds or KINDS:
            cases = list(KINDS[kind]())
            chosen = cases[:: max(1, len(cases) // options.limit)] if options.limit else cases
            results[kind] = [measure(case, Path(folder)) for case in track(chosen, kind, console=Console(stderr=True))]
    print("| kind | cases | worse in MNN than promised | largest difference, dB |\n|---|---|---|---|")
    for kind, rows in results.items():
        gaps = [row["simulation"] - row["mnn"] for row in rows if "error" not in row and row["mnn"] < GOOD]
        print(f"| {kind} | {len(rows)} | {sum(map(is_worse, rows))} | {max(gaps, default=0):.1f} |")
    worse = [row for rows in results.values() for row in rows if is_worse(row)]
    for row in worse:
        print(row)
    with replacing(options.out) as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(bool(worse))


if __name__ == "__main__":
    main()
