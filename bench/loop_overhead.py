"""What irtool's training loop costs over the bare forward, backward and step.

    python bench/loop_overhead.py

The same network, on as many images of the same sizes, in turn by a loop of five lines over tensors that lie ready (normalised,
not augmented), and by `irtool.train.fit` with all that it does between the steps: order, crops, mirroring, normalisation, sums,
the schedule, progress, the check of the loss. Both take turns, and each pair gives a ratio; the median counts. Seconds are
CPU seconds of one thread, since others may be using the machine; the wall time is shown beside them.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from irtool.models import VGG, PreResNet
from irtool.train import Data, Preprocessing, fit
from irtool.train.split import MemorySplit

OUT = Path(__file__).resolve().parent / "results" / "loop_overhead.json"
BATCH = 64
LIMIT = 0.03
NETS = {
    "VGG-16, width 1/4": lambda: VGG(16, width=0.25),
    "PreResNet-20": lambda: PreResNet(20),
    "PreResNet-38": lambda: PreResNet(38),
}


def random_data(steps: int) -> Data:
    """Noise: what the images show does not matter here. One test image, so that scoring does not count."""
    generator = torch.Generator().manual_seed(0)
    preprocessing = Preprocessing((0.5,) * 3, (0.25,) * 3, (32, 32))
    classes = tuple("0123456789")

    def split(count: int) -> MemorySplit:
        images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return MemorySplit(images, torch.randint(0, 10, (count,), generator=generator), classes, preprocessing)

    return Data("noise", split(steps * BATCH), split(1))


def bare(net: nn.Module, data: Data) -> None:
    """The least that trains."""
    images = data.preprocessing.normalise(next(iter(data.train.batches([torch.arange(len(data.train))]))))
    batches = list(zip(images.split(BATCH), data.train.labels.split(BATCH), strict=True))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    net.train()
    begin()
    for x, y in batches:
        functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()


def whole(net: nn.Module, data: Data) -> None:
    """The same by irtool."""
    begin()
    fit(net, data, epochs=1, lr=0.01, batch_size=BATCH, evaluate_every=0, device="cpu")


_BEGUN = [0.0, 0.0]


def begin() -> None:
    """Start both clocks: what comes before is not part of the loop."""
    _BEGUN[:] = [time.process_time(), time.perf_counter()]


def timed(loop: Any, net: nn.Module, data: Data) -> tuple[float, float]:
    """(CPU seconds, wall seconds) of a loop on a copy of the net."""
    loop(copy.deepcopy(net), data)
    return time.process_time() - _BEGUN[0], time.perf_counter() - _BEGUN[1]


def measure(name: str, steps: int, pairs: int) -> dict[str, Any]:
    """Pairs of runs of one net."""
    torch.manual_seed(0)
    net, data = NETS[name](), random_data(steps)
    warm = random_data(2)
    for loop in (bare, whole):
        timed(loop, net, warm)
    rows = []
    for pair in range(pairs):
        order = (bare, whole) if pair % 2 == 0 else (whole, bare)
        found = {loop: timed(loop, net, data) for loop in order}
        rows.append([*found[bare], *found[whole]])
    cpu = [row[2] / row[0] - 1 for row in rows]
    return {
        "net": name, "steps": steps, "batch": BATCH, "pairs": pairs, "bare_ms": 1000 * statistics.median(row[0] for row in rows) / steps,
        "fit_ms": 1000 * statistics.median(row[2] for row in rows) / steps, "overhead": statistics.median(cpu), "lowest": min(cpu), "highest": max(cpu),
        "overhead_wall": statistics.median(row[3] / row[1] - 1 for row in rows),
    }  # fmt: skip


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="steps of each run")
    parser.add_argument("--pairs", type=int, default=5, help="runs of each loop")
    parser.add_argument("--nets", nargs="*", default=list(NETS), choices=list(NETS), metavar="NET", help=f"of: {', '.join(NETS)}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print(
        f"{'net':20} {'bare':>12} {'fit':>12} {'overhead':>9} {'lowest':>8} {'highest':>8} {'by wall':>8}   CPU time a step of {BATCH} images"
    )
    for name in options.nets:
        row = measure(name, options.steps, options.pairs)
        rows.append(row)
        shares = " ".join(f"{100 * row[key]:7.1f}%" for key in ("overhead", "lowest", "highest", "overhead_wall"))
        print(f"{name:20} {row['bare_ms']:9.1f} ms {row['fit_ms']:9.1f} ms  {shares}", flush=True)
    OUT.write_text(json.dumps({"torch": torch.__version__, "machine": f"{platform.machine()}, 1 thread", "rows": rows}, indent=1) + "\n")
    worst = max(rows, key=lambda row: row["overhead"])
    print(f"\nworst: {worst['net']}, {100 * worst['overhead']:.1f} % (limit {100 * LIMIT:.0f} %); written to bench/results/{OUT.name}")


if __name__ == "__main__":
    main()
