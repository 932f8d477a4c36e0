"""Budgets on random nets of torchvision, and what they keep of the published PreResNet-38.

    python bench/budgets.py                          40 random (net, budget) pairs: kept, and how much of the budget is used
    python bench/budgets.py --round-to auto          the same at the widths that engines like
    python bench/budgets.py --preresnet [--images 512] [--test] [--stages 2] [--distil 1]
                                                     shares of MACs on the published nets, with absorbing and with reconstruction

The second table scores on 2,000 training images that nothing was calibrated on, by which options were chosen; with --test on the
JPEG test images instead. It needs the published checkpoints and `cifar10-jpeg.zip` (--shared FOLDER). One thread.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor

import irtool
from irtool.models import PreResNet
from irtool.pruning.plan import Residual, Rounding
from irtool.train import load_data

ROOT = Path(__file__).resolve().parents[1]
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
NETS = (
    "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0",
    "regnet_y_400mf", "regnet_x_400mf", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "densenet121", "squeezenet1_1", "mnasnet0_5", "vgg11_bn",
    "googlenet", "convnext_tiny",
)  # fmt: skip
PUBLISHED = (("sparse", 0.35), ("normal", 0.5), ("normal", 0.75))


def pairs(count: int, seed: int) -> Iterator[tuple[str, Residual, dict[str, float]]]:
    """Random nets, residual modes and budgets; each kind of budget equally often."""
    draw = random.Random(seed)
    for number in range(count):
        kinds = (("macs",), ("params",), ("macs", "params"))[number % 3]
        modes: tuple[Residual, ...] = ("couple", "select")
        yield draw.choice(NETS), draw.choice(modes), {kind: round(draw.uniform(0.25, 0.85), 2) for kind in kinds}


def on_pairs(count: int, seed: int, round_to: Rounding) -> list[dict[str, Any]]:
    """Plan, prune and count."""
    rows = []
    for name, residual, budget in pairs(count, seed):
        torch.manual_seed(seed)
        graph = irtool.trace(torchvision.models.get_model(name, weights=None).eval(), torch.zeros(1, 3, 64, 64))
        start = time.process_time()
        plan = irtool.plan(graph, "l2", residual=residual, budget=budget, round_to=round_to)
        seconds = time.process_time() - start
        before, after = irtool.cost(graph), irtool.cost(irtool.prune(graph, plan))
        used = {kind: getattr(after, kind) / (share * getattr(before, kind)) for kind, share in budget.items()}
        held = max(used.values()) <= 1 + 1e-9
        rows.append({"net": name, "residual": residual, "budget": budget, "used": used, "held": held, "seconds": seconds})
        asked = ", ".join(f"{kind} {share:.0%}" for kind, share in budget.items())
        spent = ", ".join(f"{100 * share:.2f} %" for share in used.values())
        print(f"{name:20} {residual:7} {asked:24} used {spent:20} {'kept' if held else 'EXCEEDED':9} {seconds:5.1f} s", flush=True)
    least = min(max(row["used"].values()) for row in rows)
    print(f"{sum(row['held'] for row in rows)} of {len(rows)} kept; of the tightest budget of each at least {100 * least:.2f} % used")
    return rows


def on_preresnet(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Accuracy, agreement with the unpruned net, and CPU seconds of plan and of what follows it."""
    data = load_data(options.shared / "data" / "cifar10-jpeg.zip", mean=MEAN, std=STD)
    order = np.random.default_rng(0).permutation(len(data.train.labels))
    calibration = _prepared(data, data.train, order[: options.images])
    split, chosen = (data.test, np.arange(len(data.test.labels))) if options.test else (data.train, order[-2000:])
    images, labels = _prepared(data, split, chosen), torch.as_tensor(np.asarray(split.labels)[chosen])
    rows = []
    for name, share in PUBLISHED:
        net = PreResNet(38)
        net.load_state_dict(torch.load(options.shared / "data" / "preresnet38" / f"{name}.pth", weights_only=True)["state_dict"])
        graph = irtool.trace(net.eval(), torch.zeros(1, 3, 32, 32))
        answers = _classes(graph.module, images)
        rows.append(_row(f"{name}, unpruned", answers, answers, labels, 1.0, 0.0))
        for criterion in options.criteria.split(","):
            start = time.process_time()
            plan = irtool.plan(
                graph,
                criterion,
                residual=options.residual,
                round_to=1,
                budget={"macs": share},
                data=calibration[:512],
                stages=options.stages,
            )
            planned = time.process_time() - start
            for way in ("absorb", "reconstruct", "distil")[: 2 + (options.distil > 0)]:
                start = time.process_time()
                if way == "absorb":
                    pruned = irtool.prune(graph, plan)
                else:
                    pruned = irtool.reconstruct(graph, plan, calibration, distil=options.distil if way == "distil" else 0)
                seconds = planned + time.process_time() - start
                left = irtool.cost(pruned).macs / irtool.cost(graph).macs
                rows.append(
                    _row(f"{name}, {criterion}, {plan.residual}, {way}", _classes(pruned.module, images), answers, labels, left, seconds)
                )
    return rows


def _prepared(data: Any, split: Any, chosen: Any) -> Tensor:
    normalised: Tensor = data.preprocessing.normalise(next(iter(split.batches([np.asarray(chosen)]))))
    return normalised


def _classes(module: torch.nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([module.eval()(part).argmax(1) for part in images.split(250)])


def _row(name: str, got: Tensor, answers: Tensor, labels: Tensor, share: float, seconds: float) -> dict[str, Any]:
    right, same = (100 * float((got == other).double().mean()) for other in (labels, answers))
    print(f"{name:42} {100 * share:6.2f} % MACs  {right:6.2f} % right  {same:6.2f} % as unpruned  {seconds:6.1f} s CPU", flush=True)
    return {"name": name, "macs": share, "right": right, "same": same, "seconds": seconds}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--round-to", default="1", help="1: single channels; auto: the widths that engines like")
    parser.add_argument("--preresnet", action="store_true")
    parser.add_argument("--stages", type=int, default=1)
    parser.add_argument("--distil", type=int, default=0)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--test", action="store_true")
    parser.add_argument("--criteria", default="fisher")
    parser.add_argument("--residual", default="select")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = (
        on_preresnet(options)
        if options.preresnet
        else on_pairs(options.count, options.seed, "auto" if options.round_to == "auto" else int(options.round_to))
    )
    if options.preresnet and not options.test:
        return  # figures by which options were chosen are not kept
    kind = "-preresnet" if options.preresnet else "" if options.round_to == "1" else f"-{options.round_to}"
    path = ROOT / "bench" / "results" / f"budgets{kind}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
