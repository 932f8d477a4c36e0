"""Time of layers over 1 to 64 channels, in onnxruntime and MNN: which widths the engines like.

    python bench/widths.py [--size 14] [--rounds 30]

Chains of layers of equal width, each with a ReLU: 1x1, 3x3, and depthwise 3x3 between two 1x1 (an inverted residual's), and 3x3 in four
groups, where the number is a group's channels. All widths of one chain are timed in turn, in another order each round, by the CPU time
of one thread; the figure is the median over the rounds, in microseconds.

Writes `bench/results/widths.json`, `docs/widths.md` and `docs/widths.png`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from irtool.engines import MnnSession, OnnxSession, Session, export_mnn

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "bench" / "results" / "widths.json", ROOT / "docs" / "widths.md"
KINDS: dict[str, list[tuple[int, int]]] = {  # (kernel, groups) of each layer; 0 groups for depthwise
    "1x1": [(1, 1)] * 6,
    "3x3": [(3, 1)] * 4,
    "depthwise between 1x1": [(1, 1), (3, 0), (1, 1)] * 2,
    "3x3 in 4 groups": [(3, 4)] * 4,
}
ENGINES = ("onnxruntime", "mnn")
MOST = 64
RULE = """Engines compute in blocks of channels, and a block that is partly filled costs as much as a full one. In onnxruntime a layer leaves the
blocked layout where its channels are no multiple of 4: a depthwise block of 61 channels takes twice the time of 64, a 3x3 convolution of
17 channels the time of 32. So pruning to any width can make a net slower. `round_to="auto"`, the default of `irtool.plan` and
`irtool compress`, keeps each layer that loses channels at a multiple of

| channels of the layer before | 32 and more | 8 to 31 | fewer |
|---|---|---|---|
| multiple | 16 | 4 | 1 |

where they count in total, not in each group. The groups of a grouped convolution lose equally many, and keep multiples of 16 of 32 and more,
of 8 of 16 and more, of 4 of 8 and more; with many groups the multiple of the whole layer is halved until both can be had. Where these
multiples do not reach a budget or miss a ratio by more than a tenth, finer ones are taken and the plan says so. `round_to=1` takes any
width. On the 40 random nets and budgets of `bench/budgets.py` every budget is kept; single channels use at least 99.2 % of it, these
multiples at least 96.8 %."""


def chain(layers: list[tuple[int, int]], width: int, size: int) -> onnx.ModelProto:
    """A model of layers of one width; a group's width where there are groups."""
    channels = width * max(groups for _, groups in layers)
    nodes, weights, name = [], [], "x"
    for number, (kernel, groups) in enumerate(layers):
        parts = groups or channels
        values = np.full((channels, channels // parts, kernel, kernel), 0.1 / channels, np.float32)
        weights += [numpy_helper.from_array(values, f"w{number}"), numpy_helper.from_array(np.zeros(channels, np.float32), f"b{number}")]
        nodes.append(helper.make_node("Conv", [name, f"w{number}", f"b{number}"], [f"c{number}"], f"c{number}", kernel_shape=[kernel] * 2,
                                      pads=[kernel // 2] * 4, group=parts))  # fmt: skip
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"], f"r{number}"))
        name = f"r{number}"
    shape = [1, channels, size, size]
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, shape) for end in ("x", name)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def opened(layers: list[tuple[int, int]], engine: str, size: int, folder: Path) -> list[tuple[Session, np.ndarray]]:
    """A session and its input for each width."""
    found: list[tuple[Session, np.ndarray]] = []
    for width in range(1, MOST + 1):
        model, file = chain(layers, width, size), folder / f"{width}.onnx"
        onnx.save(model, str(file))
        if engine == "mnn":
            export_mnn(file, file.with_suffix(".mnn"), verify=False)
        session = OnnxSession(file, 1) if engine == "onnxruntime" else MnnSession(file.with_suffix(".mnn"), 1)
        sizes = [held.dim_value for held in model.graph.input[0].type.tensor_type.shape.dim]
        found.append((session, np.ones(sizes, np.float32)))
    return found


def medians(sessions: list[tuple[Session, np.ndarray]], rounds: int) -> list[float]:
    """Microseconds of CPU time a run."""
    draw = np.random.default_rng(0)
    times = np.zeros((rounds, len(sessions)))
    for turn in range(-3, rounds):
        for which in draw.permutation(len(sessions)).tolist():
            session, x = sessions[which]
            session.run(x)
            start = time.process_time()
            session.run(x)
            session.run(x)
            if turn >= 0:
                times[turn, which] = (time.process_time() - start) / 2 * 1e6
    return [round(float(value), 1) for value in np.median(times, axis=0)]


def written(results: dict[str, Any]) -> str:
    """The page."""
    lines = ["# Widths that engines like", "", RULE, "", (__doc__ or "").split("\n\n")[2].replace("\n", " "), "", "![](widths.png)", ""]
    names = [(kind, engine) for kind in KINDS for engine in ENGINES]
    lines += ["| channels | " + " | ".join(f"{kind}, {engine}" for kind, engine in names) + " |", "|---|" + "---|" * len(names)]
    for width in range(1, MOST + 1):
        cells = [f"{results['us'][kind][engine][width - 1]:.0f}" for kind, engine in names]
        lines.append(f"| {width} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plotted(results: dict[str, Any], path: Path) -> None:
    """Time over width, a panel for each kind and engine."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(len(ENGINES), len(KINDS), figsize=(16, 6), sharex=True)
    for column, kind in enumerate(KINDS):
        for row, engine in enumerate(ENGINES):
            panel = panels[row][column]
            panel.plot(range(1, MOST + 1), results["us"][kind][engine], ".-", markersize=4, linewidth=0.8)
            panel.set_title(f"{kind}, {engine}", fontsize=9)
            panel.set_xticks(range(0, MOST + 1, 8))
            panel.grid(alpha=0.3)
            panel.set_ylim(bottom=0)
    panels[-1][0].set_xlabel("channels (of a group, where there are groups)")
    panels[0][0].set_ylabel("microseconds")
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=14)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    results: dict[str, Any] = {"size": options.size, "rounds": options.rounds, "us": {}}
    for kind, layers in KINDS.items():
        for engine in ENGINES:
            with tempfile.TemporaryDirectory() as folder:
                times = medians(opened(layers, engine, options.size, Path(folder)), options.rounds)
            results["us"].setdefault(kind, {})[engine] = times
            print(kind, engine, times, flush=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(written(results))
    plotted(results, PAGE.with_suffix(".png"))


if __name__ == "__main__":
    main()
