"""Costs of irtool's training loop over the bare forward, backward and step.

    python bench/loop_overhead.py

The same network, on as many images of the same sizes, in turn by a loop of five lines over tensors that lie ready (normalised,
not augmented), and by `irtool.train.fit` with all that it does between the steps: order, crops, mirroring, normalisation, sums,
the schedule, progress, the check of the loss. Both take turns, and each pair gives a difference; the median counts. Seconds
are CPU seconds of one thread, since others may be using the machine.

What `fit` does between the steps depends on the images and not on the network. It is measured on a network of one linear layer,
where it is not lost in the noise of the steps, and set against each network's bare step. The ratio that each network's own
pairs give is shown beside it; on a busy machine it scatters by several per cent.
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
from irtool.train.data.split import MemorySplit

OUT = Path(__file__).resolve().parent / "results" / "loop_overhead.json"
BATCH = 64
LIMIT = 0.03
EMPTY = "one linear layer"
NETS = {
    EMPTY: lambda: nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(3, 10)),
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


def bare(net: nn.Module, data: Data) -> float:
    """The least that trains; returns when it began."""
    images = data.preprocessing.normalise(next(iter(data.train.batches([torch.arange(len(data.train))]))))
    batches = list(zip(images.split(BATCH), data.train.labels.split(BATCH), strict=True))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    net.train()
    begun = time.process_time()
    for x, y in batches:
        functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return begun


def whole(net: nn.Module, data: Data) -> float:
    """Train an epoch by irtool; returns when it began."""
    begun = time.process_time()
    fit(net, data, epochs=1, lr=0.01, batch_size=BATCH, evaluate_every=0, device="cpu")
    return begun


def timed(loop: Any, net: nn.Module, data: Data) -> float:
    """CPU seconds of a loop on a copy of the net, from where the loop says that it begins."""
    begun: float = loop(copy.deepcopy(net), data)
    return time.process_time() - begun


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
        rows.append((found[bare], found[whole]))
    ratios = [row[1] / row[0] - 1 for row in rows]
    return {
        "net": name, "steps": steps, "batch": BATCH, "pairs": pairs, "bare_ms": 1000 * statistics.median(row[0] for row in rows) / steps,
        "added_ms": 1000 * statistics.median(row[1] - row[0] for row in rows) / steps,
        "paired": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios),
    }  # fmt: skip


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="steps of each run")
    parser.add_argument("--pairs", type=int, default=5, help="runs of each loop")
    options = parser.parse_args()
    torch.set_num_threads(1)
    empty = measure(EMPTY, 200, 2 * options.pairs)
    rows = [empty]
    print(f"{'CPU time a step of 64 images':28} {'bare':>10} {'irtool adds':>12} {'overhead':>9}   by pairs (lowest to highest)")
    print(f"{EMPTY:28} {empty['bare_ms']:7.2f} ms {empty['added_ms']:9.2f} ms")
    for name in NETS:
        if name != EMPTY:
            row = measure(name, options.steps, options.pairs)
            row["overhead"] = empty["added_ms"] / row["bare_ms"]
            rows.append(row)
            paired = f"{100 * row['paired']:+.1f} % ({100 * row['lowest']:+.1f} to {100 * row['highest']:+.1f})"
            print(f"{name:28} {row['bare_ms']:7.1f} ms {'':12} {100 * row['overhead']:7.2f} %   {paired}", flush=True)
    OUT.write_text(json.dumps({"torch": torch.__version__, "machine": f"{platform.machine()}, 1 thread", "rows": rows}, indent=1) + "\n")
    worst = max(rows[1:], key=lambda row: row["overhead"])
    print(f"\nlargest: {100 * worst['overhead']:.2f} % for {worst['net']} (limit {100 * LIMIT:.0f} %); written to bench/results/{OUT.name}")


if __name__ == "__main__":
    main()
