"""Pruned and folded against the original: time beside multiply-accumulates, in torch, onnxruntime and MNN.

VGG-16 (32x32) at half and a quarter of its width and pruned at 0.7, ResNet-50 (224x224) pruned at 0.5 with channels in
multiples of 8 and without. Random weights; each round runs the original and all its smaller models once; the ratio is the median over the
rounds. `ideal` is the share of multiply-accumulates that is left.

Example: python bench/pruned_latency.py --out bench/results/pruned_latency.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

import irtool
from irtool.engines import MnnSession, OnnxSession, Session, TorchSession, export_mnn, export_onnx, latency_pairs
from irtool.models import VGG

ENGINES: dict[str, Callable[[irtool.FxGraph, Path, int], Session]] = {
    "torch": lambda graph, stem, threads: TorchSession(graph),
    "onnxruntime": lambda graph, stem, threads: OnnxSession(stem.with_suffix(".onnx"), threads),
    "MNN": lambda graph, stem, threads: MnnSession(stem.with_suffix(".mnn"), threads),
}


def pruned(graph: irtool.FxGraph, ratio: float, scope: str = "local", **options: Any) -> irtool.FxGraph:
    """Pruned by l1 and folded."""
    return irtool.fold_batchnorm(irtool.prune(graph, irtool.plan(graph, "l1", ratio, scope, **{"round_to": 1, **options})))


def families() -> dict[str, tuple[tuple[int, ...], dict[str, irtool.FxGraph]]]:
    """Input sizes and models; the first is the original."""
    torch.manual_seed(0)
    small, large = (1, 3, 32, 32), (1, 3, 224, 224)
    vgg = irtool.trace(VGG(16).eval(), torch.zeros(2, *small[1:]))
    resnet = irtool.trace(torchvision.models.resnet50(weights=None).eval(), torch.zeros(2, *large[1:]))
    narrow = {f"width {width}": irtool.trace(VGG(16, width=width).eval(), torch.zeros(2, *small[1:])) for width in (0.5, 0.25)}
    return {
        "VGG-16": (
            small,
            {
                "original": irtool.fold_batchnorm(vgg),
                **{name: irtool.fold_batchnorm(graph) for name, graph in narrow.items()},
                "pruned at 0.7": pruned(vgg, 0.7),
            },
        ),
        "ResNet-50": (
            large,
            {
                "original": irtool.fold_batchnorm(resnet),
                "pruned at 0.5": pruned(resnet, 0.5),
                "pruned at 0.5, multiples of 8": pruned(resnet, 0.5, round_to=8),
                "pruned at 0.6": pruned(resnet, 0.6),
                "pruned at 0.6, multiples of 8": pruned(resnet, 0.6, round_to=8),
            },
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of rounds for each engine")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("bench/results/pruned_latency.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results: dict[str, Any] = {"threads": options.threads, "models": {}}
    for family, (size, graphs) in families().items():
        macs = [irtool.cost(graph).macs for graph in graphs.values()]
        rows = {name: {"macs": count, "ideal": count / macs[0]} for name, count in zip(graphs, macs, strict=True)}
        with tempfile.TemporaryDirectory() as name:
            stems = [Path(name) / str(number) for number in range(len(graphs))]
            for graph, stem in zip(graphs.values(), stems, strict=True):
                export_onnx(graph, stem.with_suffix(".onnx"))
                export_mnn(stem.with_suffix(".onnx"), stem.with_suffix(".mnn"))
            x = np.random.default_rng(0).normal(size=size).astype(np.float32)
            for engine, make in ENGINES.items():
                sessions = [make(graph, stem, options.threads) for graph, stem in zip(graphs.values(), stems, strict=True)]
                found = latency_pairs(sessions, [x], runs=100000, seconds=options.seconds)
                for row, one, ratio in zip(rows.values(), found.latencies, found.ratios, strict=True):
                    row[engine] = {"ratio": ratio, "median_ms": one.median_ms, "p10_ms": one.p10_ms, "rounds": one.runs}
        results["models"][family] = rows
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")
        print(
            f"\n### {family}, {options.threads} thread\n\n| | MACs of the original | "
            + " | ".join(ENGINES)
            + " |\n|---|---|"
            + "---|" * len(ENGINES)
        )
        for title, row in rows.items():
            print(f"| {title} | {row['ideal']:.3f} | " + " | ".join(f"{row[engine]['ratio']:.3f}" for engine in ENGINES) + " |")


if __name__ == "__main__":
    main()
