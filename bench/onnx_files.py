"""The table in docs/onnx-files.md: real ONNX files folded, pruned and compared with their masked originals in onnxruntime.

    python bench/onnx_files.py FOLDER          # a table line a file, then what was left alone and why

Files whose weights are all one number (topologies without training) get random weights for the comparison, since equal
weights would hide a wrong channel; their bytes are those of the file's own weights.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import onnx
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from onnx_nets import randomised  # noqa: E402

import irtool  # noqa: E402
from irtool.errors import IrtoolError  # noqa: E402
from irtool.planning.onnx_check import before_saturation  # noqa: E402

HEAD = ("file", "nodes", "layers", "parameters", "0.3", "0.5", "bytes", "0.5", "error 0.3", "error 0.5", "fold", "seconds")


def fold_error(graph: irtool.OnnxGraph) -> str:
    """How many batch norms were folded, and the relative difference that made."""
    folded = irtool.fold_batchnorm(graph)
    count = sum(node.op == "BatchNormalization" for node in graph.nodes) - sum(node.op == "BatchNormalization" for node in folded.nodes)
    if not count:
        return "none"
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(value.sizes, generator=generator) for value in graph.inputs]
    places = before_saturation(graph)
    pairs = zip(graph.run(*inputs, values=places), folded.run(*inputs, values=places), strict=True)
    worst = max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-30)) for a, b in pairs)
    return f"{count}, {worst:.0e}"


def measure(path: Path, out: Path) -> tuple[list[str], list[str]]:
    """One line of the table, and lines on what was left alone."""
    own = irtool.load_onnx(path)
    graph = randomised(own)
    cells = [path.stem, str(len(onnx.load(path).graph.node))]
    shares, errors, notes = [], [], []
    total = irtool.cost(graph).params
    for ratio in (0.3, 0.5):
        start = time.perf_counter()
        plan = irtool.plan(graph, "l1", ratio)
        smaller = irtool.prune(graph, plan, constants="drop")
        seconds = time.perf_counter() - start
        irtool.save_onnx(smaller, out)
        params = irtool.cost(smaller).params
        shares.append(f"{params:,} (-{1 - params / total:.0%})")
        check = irtool.check_prune(graph, plan)
        errors.append(f"{check.relative:.0e}" + (" (inexact step)" if check.unresolved else ""))
        notes += [f"inexact at {ratio}: {step}" for step in check.unresolved]
    whole = Counter(layer.reason.split(" (at ")[0] for layer in plan.layers if layer.reason and not layer.removed)
    part = Counter(layer.reason.split(" (at ")[0] for layer in plan.layers if layer.reason and layer.removed)
    notes += [f"{count} layer{'s' * (count > 1)} left alone: {reason}" for reason, count in whole.most_common()]
    notes += [f"{count} layer{'s' * (count > 1)} in part: {reason}" for reason, count in part.most_common()]
    free = sum(1 for layer in plan.layers if layer.removed or not layer.reason)
    size = irtool.save_onnx(irtool.prune(own, irtool.plan(own, "l1", 0.5), constants="drop"), out)
    cells += [
        f"{free} of {len(plan.layers)}",
        f"{total:,}",
        *shares,
        f"{path.stat().st_size:,}",
        f"{size:,}",
        *errors,
        fold_error(graph),
        f"{seconds:.1f}",
    ]
    return cells, notes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    left: list[str] = []
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}", flush=True)
    with tempfile.TemporaryDirectory() as out:
        for path in sorted(folder.glob("*.onnx")):
            try:
                cells, notes = measure(path, Path(out) / "m.onnx")
            except IrtoolError as error:
                cells, notes = [path.stem, "refused"], [f"refused: {error.what}. {error.remedy}"]
            print(f"| {' | '.join(cells)} |", flush=True)
            left += [f"- `{path.stem}`: {note}" for note in notes]
    print("", *left, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
