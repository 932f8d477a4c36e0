"""The table in docs/onnx-files.md: real ONNX files folded, pruned and compared with their masked originals in onnxruntime.

    python bench/onnx_files.py FOLDER          # a table line a file, then what was left alone and why
    python bench/onnx_files.py FOLDER --peer   # beside onnxsim's structured pruning, which must be installed

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

import onnx_peer  # noqa: E402
from onnx_nets import randomised  # noqa: E402
from onnx_peer import LAYERS  # noqa: E402

import irtool  # noqa: E402
from irtool.errors import IrtoolError  # noqa: E402
from irtool.pruning.slicing.check import before_saturation  # noqa: E402

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


PEER_HEAD = ("file", "parameters", "layers cut, irtool", "onnxsim", "parameters left, irtool", "onnxsim", "error, irtool", "onnxsim")


def beside(path: Path) -> list[str]:
    """One line of the table beside onnxsim: half of the channels of each layer by l2, batch norms folded before."""
    graph = irtool.fold_batchnorm(randomised(irtool.load_onnx(path)))
    plan = irtool.plan(graph, "l2", 0.5, "local")
    smaller = irtool.prune(graph, plan, constants="drop")
    cut = sum(
        _outputs(a) != _outputs(b)
        for a, b in zip([n for n in graph.nodes if n.op in LAYERS], [n for n in smaller.nodes if n.op in LAYERS], strict=True)
    )
    generator = torch.Generator().manual_seed(0)
    feed = {value.name: torch.randn(value.sizes, generator=generator).numpy() for value in graph.inputs}
    peer = onnx_peer.prune(graph.proto, 0.5, feed)
    total, left = irtool.cost(graph).params, irtool.cost(smaller).params
    error = peer.error if isinstance(peer.error, str) else f"{peer.error:.0e}" if peer.cut else "nothing pruned"
    return [
        path.stem,
        f"{total:,}",
        str(cut),
        str(peer.cut),
        f"{left:,} (-{1 - left / total:.0%})",
        f"{peer.after:,} (-{1 - peer.after / peer.before:.0%})",
        f"{irtool.check_prune(graph, plan).relative:.0e}",
        error,
    ]


def _outputs(node: irtool.Node) -> int:
    """How many outputs a layer's weight makes; 0 for a product of two values."""
    value = node.get("weight")
    if value is None:
        return 0
    last = node.op == "ConvTranspose" or node.attrs.get("transB") == 0
    return value.sizes[1] * node.attrs.get("group", 1) if last else value.sizes[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peer", action="store_true")
    options = parser.parse_args()
    if options.peer and not onnx_peer.installed():
        parser.error("onnxsim is not installed: pip install onnxsim")
    torch.set_num_threads(1)
    left: list[str] = []
    head = PEER_HEAD if options.peer else HEAD
    if options.peer:
        print(f"onnxsim {onnx_peer.installed()}\n")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    with tempfile.TemporaryDirectory() as out:
        for path in sorted(options.folder.glob("*.onnx")):
            try:
                cells, notes = (beside(path), []) if options.peer else measure(path, Path(out) / "m.onnx")
            except IrtoolError as error:
                cells, notes = [path.stem, "refused"], [f"refused: {error.what}. {error.remedy}"]
            print(f"| {' | '.join(cells)} |", flush=True)
            left += [f"- `{path.stem}`: {note}" for note in notes]
    print("", *left, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
