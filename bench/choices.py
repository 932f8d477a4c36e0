"""Choices about a plan at equal MACs: residual streams, depth, allocation.

    python bench/choices.py [--nets sparse,normal] [--shares 0.5,0.35] [--ways couple,select,auto,depth,measured] [--images 512] [--test 2000]

Each row is one call of `plan` (criterion `fisher`, one stage, `round_to=1`) and one of `reconstruct`, on the same training images without
labels. What `auto` and `depth` choose they choose on those images alone. Scored on JPEG test images of CIFAR-10, drawn at random, that chose
nothing. It needs the published checkpoints and `cifar10-jpeg.zip` (--shared FOLDER). One thread. Rows are added to
`bench/results/choices.json`; `--table` prints them.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from budgets import MEAN, ROOT, STD, _classes, _prepared

import irtool
from irtool.models import PreResNet
from irtool.train import load_data

RESULTS = ROOT / "bench" / "results" / "choices.json"
WAYS: dict[str, dict[str, Any]] = {
    "couple": {"residual": "couple"},
    "select": {"residual": "select"},
    "auto": {"residual": "auto"},
    "depth": {"residual": "auto", "depth": True},
    "couple, measured": {"residual": "couple", "allocator": "measured"},
    "select, measured": {"residual": "select", "allocator": "measured"},
}


def rows(options: argparse.Namespace) -> None:
    """Plan, refit, score."""
    data = load_data(options.shared / "data" / "cifar10-jpeg.zip", mean=MEAN, std=STD)
    calibration = _prepared(data, data.train, np.random.default_rng(0).permutation(len(data.train.labels))[: options.images])
    chosen = np.random.default_rng(1).permutation(len(data.test.labels))[: options.test]
    images, labels = _prepared(data, data.test, chosen), torch.as_tensor(np.asarray(data.test.labels)[chosen])
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in options.nets.split(","):
        net = PreResNet(38)
        net.load_state_dict(torch.load(options.shared / "data" / "preresnet38" / f"{name}.pth", weights_only=True)["state_dict"])
        graph = irtool.trace(net.eval(), torch.zeros(1, 3, 32, 32))
        answers = _classes(graph.module, images)
        for share in map(float, options.shares.split(",")):
            for way in options.ways.split(";"):
                start = time.process_time()
                plan = irtool.plan(graph, "fisher", budget={"macs": share}, data=calibration, round_to=1, **WAYS[way])
                planned = time.process_time()
                small = irtool.reconstruct(graph, plan, calibration)
                seconds = planned - start, time.process_time() - planned
                got = _classes(small.module, images)
                row: dict[str, Any] = {
                    "macs": irtool.cost(small).macs / irtool.cost(graph).macs,
                    "right": 100 * float((got == labels).double().mean()),
                    "same": 100 * float((got == answers).double().mean()),
                    "seconds": seconds,
                    "chosen": f"{plan.residual}{', without ' + ', '.join(plan.branches) if plan.branches else ''}",
                    "notes": plan.notes,
                    "images": len(labels),
                }
                found[f"{name} {share:g} {way}"] = row
                print(f"{name} {share:g} {way}: {row}", flush=True)
                RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def table() -> str:
    """The rows, as Markdown."""
    lines = ["| net | MACs | way | right | as unpruned | chosen | CPU s of plan |", "|---|" + "---|" * 6]
    for key, row in json.loads(RESULTS.read_text()).items():
        name, share, way = key.split(" ", 2)
        lines.append(
            f"| {name} | {100 * float(share):g} % | {way} | {row['right']:.2f} | {row['same']:.2f} | {row['chosen']} | {row['seconds'][0]:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default="sparse,normal")
    parser.add_argument("--shares", default="0.5,0.35")
    parser.add_argument("--ways", default=";".join(WAYS), help="separated by semicolons")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.table:
        print(table())
    else:
        rows(options)


if __name__ == "__main__":
    main()
