"""Half of the MACs, as time; and latency budgets, measured again.

    python bench/half_macs.py [--criterion fisher] [--nets regnet_y_400mf,resnet50]
    python bench/half_macs.py --latency              10 latency budgets: asked for, and measured anew by other sessions

Random weights, and noise for the criterion to look at (norms of random weights say nothing of what a channel is worth). Both nets are folded, exported and timed in turn at batch 1 with one thread, by processor time, so that what else the
machine does counts little; the ratio is the median over the rounds. `arrives` is the part of the MACs saved that arrives as time.
Writes `bench/results/half_macs.json` or `latency_budgets.json`, and `docs/half-macs.md` from both.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import irtool
from irtool.engines.speed.whole_graph import GraphClock
from irtool.workflows.compress.speed import slower_sentences

ROOT = Path(__file__).resolve().parents[1]
HALF, BUDGETS = (ROOT / "bench" / "results" / name for name in ("half_macs.json", "latency_budgets.json"))
PAGE = ROOT / "docs" / "half-macs.md"
LARGE = ("resnet50", "mobilenet_v2", "efficientnet_b0", "regnet_y_400mf", "mobilenet_v3_large", "resnext50_32x4d")
SMALL = ("plain at 28x28", "inverted residuals at 28x28", "groups of 16 at 28x28")
GROUPED = ("regnet_y_400mf", "resnext50_32x4d", SMALL[2])
ENGINES = ("onnxruntime", "mnn")
SHORT = (
    "Runs differ: EfficientNet-B0 at the same plan gave 0.58 to 0.61 in onnxruntime on a busy machine, so its 0.80 may as well be 0.78.",
    "RegNetY-400MF in onnxruntime gave 0.595 to 0.605 in three runs, which is 0.79 to 0.81. In the small nets the first and last layers weigh more, and what an engine takes for each operator.",
)
KINDS = (
    "## Whole groups, or channels of each",
    "",
    'By default narrow groups (fewer than 32 channels) go as a whole, so that those that stay keep their width. `groups="even"` removes equally',
    "many channels of each. MNN takes as long for 4 channels of a group as for 8, onnxruntime as long for 9 to 15 as for 16 ([widths](widths.md)).",
    "",
    "| net | MACs left | whole: onnxruntime | arrives | MNN | arrives | even: onnxruntime | arrives | MNN | arrives |",
    "|---|" + "---|" * 9,
)
ASKED = (
    ("resnet50", "onnxruntime", 0.5), ("resnet50", "mnn", 0.7), ("mobilenet_v2", "onnxruntime", 0.6), ("mobilenet_v2", "mnn", 0.5),
    ("efficientnet_b0", "onnxruntime", 0.7), ("efficientnet_b0", "mnn", 0.6), ("regnet_y_400mf", "onnxruntime", 0.6),
    ("mobilenet_v3_large", "mnn", 0.5), ("plain at 28x28", "onnxruntime", 0.5), ("inverted residuals at 28x28", "mnn", 0.6),
)  # fmt: skip


class Grouped(nn.Module):
    """1x1, 3x3 in groups of 16, 1x1, with a shortcut where the shapes allow."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.same = stride == 1 and width == out
        self.body = nn.Sequential(
            nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
            nn.Conv2d(out, out, 3, stride, 1, groups=out // 16, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
            nn.Conv2d(out, out, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return torch.relu(x + y if self.same else y)


class Inverted(nn.Module):
    """1x1, depthwise 3x3, 1x1, with a shortcut where the shapes allow."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        hidden = 4 * width
        self.same = stride == 1 and width == out
        self.body = nn.Sequential(
            nn.Conv2d(width, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(),
            nn.Conv2d(hidden, out, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.same else y


def built(name: str) -> irtool.FxGraph:
    """A net with random weights, traced."""
    torch.manual_seed(0)
    if name in LARGE:
        return irtool.trace(torchvision.models.get_model(name, weights=None).eval(), torch.zeros(1, 3, 224, 224))
    if name == SMALL[0]:
        layers: list[nn.Module] = []
        for number, (a, b) in enumerate([(1, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128)]):
            layers += [nn.Conv2d(a, b, 3, 1 + number % 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)]
    elif name == SMALL[2]:
        layers = [nn.Conv2d(1, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
        layers += [Grouped(a, b, s) for a, b, s in [(32, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1)]]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10)]
    else:
        layers = [nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()]
        layers += [Inverted(a, b, s) for a, b, s in [(16, 24, 2), (24, 24, 1), (24, 32, 2), (32, 32, 1), (32, 64, 1)]]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return irtool.trace(nn.Sequential(*layers, *head).eval(), torch.zeros(1, 1, 28, 28))


def noise(graph: irtool.FxGraph) -> Tensor:
    """Inputs for a criterion that looks at some."""
    return torch.randn(16, *graph.example_inputs[0].shape[1:], generator=torch.Generator().manual_seed(1))


def half(name: str, criterion: str) -> dict[str, Any]:
    """One net at half of its MACs, at the default widths and at any."""
    graph = built(name)
    row: dict[str, Any] = {"net": name}
    wishes: dict[str, dict[str, Any]] = {"auto": {}, **({"even": {"groups": "even"}} if name in GROUPED else {}), "1": {"round_to": 1}}
    for wish, options in wishes.items():
        plan = irtool.plan(graph, criterion, budget={"macs": 0.5}, data=noise(graph), **options)
        small = irtool.fold_batchnorm(irtool.prune(graph, plan))
        found: dict[str, Any] = {"macs": irtool.cost(small).macs / irtool.cost(graph).macs, "notes": plan.notes}
        for engine in ENGINES:
            with GraphClock(irtool.fold_batchnorm(graph), engine) as clock:
                pair = clock.compared(small)
            found[engine] = {"ratio": pair.ratios[1], "interval": pair.intervals[1], "ms": [one.median_ms for one in pair.latencies]}
        said = ({engine: found[engine][kind] for engine in ENGINES} for kind in ("ratio", "interval"))
        found["said"] = slower_sentences(small, *said, 1)
        row[wish] = found
        shown = ", ".join(f"{engine} {found[engine]['ratio']:.3f}" for engine in ENGINES)
        print(f"{name:28} {wish:5} MACs {found['macs']:.3f}  {shown}", *found["said"], flush=True)
    return row


def budgeted(name: str, engine: str, share: float, criterion: str) -> dict[str, Any]:
    """One latency budget, and what other sessions then measure."""
    graph = built(name)
    start = time.process_time()
    plan = irtool.plan(graph, criterion, budget={"latency": share}, engine=engine, data=noise(graph))
    seconds = time.process_time() - start
    small = irtool.fold_batchnorm(irtool.prune(graph, plan))
    with GraphClock(irtool.fold_batchnorm(graph), engine) as clock:
        measured = clock.compared(small).ratios[1]
    macs = irtool.cost(small).macs / irtool.cost(graph).macs
    print(f"{name:28} {engine:12} asked {share:.2f}  measured {measured:.3f} ({100 * (measured / share - 1):+.1f} %)  MACs {macs:.3f}  {seconds:.0f} s", flush=True)  # fmt: skip
    return {"net": name, "engine": engine, "asked": share, "measured": measured, "macs": macs, "seconds": seconds, "notes": plan.notes}


def arrived(found: dict[str, Any]) -> list[str]:
    """For each engine what is left of the time, and the part of the MACs saved that arrives as time."""
    pairs = [(found[engine]["ratio"], (1 - found[engine]["ratio"]) / (1 - found["macs"])) for engine in ENGINES]
    return [f"{number:.{digits}f}" for ratio, part in pairs for number, digits in ((ratio, 3), (part, 2))]


def page() -> str:
    """The tables of both files, as far as they are there."""
    lines = ["# Half of the MACs, as time", "", *(__doc__ or "").split("\n\n")[2].splitlines()[:-1], ""]
    if HALF.exists():
        lines += ["| net | MACs left | onnxruntime | arrives | MNN | arrives | single channels: onnxruntime | MNN |", "|---|" + "---|" * 7]
        for row in json.loads(HALF.read_text()):
            cells = [f"{row['auto']['macs']:.3f}", *arrived(row["auto"]), *(f"{row['1'][engine]['ratio']:.3f}" for engine in ENGINES)]
            lines.append(f"| {row['net']} | " + " | ".join(cells) + " |")
        lines += ["", *SHORT, "", *KINDS]
        for row in json.loads(HALF.read_text()):
            if "even" in row:
                cells = [f"{row['auto']['macs']:.3f}", *arrived(row["auto"]), *arrived(row["even"])]
                lines.append(f"| {row['net']} | " + " | ".join(cells) + " |")
    if BUDGETS.exists():
        lines += [
            "",
            "## Latency budgets",
            "",
            "| net | engine | asked for | measured anew | over | MACs left |",
            "|---|---|---|---|---|---|",
        ]
        for row in json.loads(BUDGETS.read_text()):
            over = 100 * (row["measured"] / row["asked"] - 1)
            lines.append(
                f"| {row['net']} | {row['engine']} | {row['asked']:.2f} | {row['measured']:.3f} | {over:+.1f} % | {row['macs']:.3f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--criterion", default="fisher")
    parser.add_argument("--latency", action="store_true")
    parser.add_argument("--nets", default=",".join((*LARGE, *SMALL)), help="measured anew; the rows of others stay")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.latency:
        rows, path = [budgeted(*asked, options.criterion) for asked in ASKED], BUDGETS
    else:
        before = {row["net"]: row for row in json.loads(HALF.read_text())} if HALF.exists() else {}
        found = {**before, **{name: half(name, options.criterion) for name in options.nets.split(",")}}
        rows, path = [found[name] for name in (*LARGE, *SMALL) if name in found], HALF
    path.write_text(json.dumps(rows, indent=1) + "\n")
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
