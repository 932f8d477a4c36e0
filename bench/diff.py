"""How long a diff takes, and what it finds, by the size of the graphs.

    python bench/diff.py              all cases; writes bench/results/diff.json
    python bench/diff.py chain deep   these only; other results in the file stay

Each case compares two graphs that differ in a known way, in one process with one thread. Wall and CPU time of `irtool.diff`
alone, median of three; tracing, export and reading are not in it. `page` is the size of `Diff.to_html()`.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import irtool
from irtool.atomic_files import replacing

RESULTS = Path(__file__).resolve().parent / "results" / "diff.json"
REPEATS = 3


class Chain(nn.Module):
    """2,000 nodes without a module."""

    def __init__(self, extra: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(4, 4, 1, 1)) for _ in range(1000)])
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        """Convolutions and activations in turn; a sigmoid in the middle if asked."""
        for index, weight in enumerate(self.weights):
            x = F.relu(F.conv2d(x, weight))
            x = torch.sigmoid(x) if index == self.extra else x
        return x


def _trace(model: nn.Module, size: int) -> Any:
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return irtool.trace(model.eval(), torch.zeros(1, 3, size, size))


def _chain() -> tuple[Any, Any]:
    x = torch.zeros(1, 4, 2, 2)
    return irtool.trace(Chain(), x), irtool.trace(Chain(extra=500), x)


def _pruned(model: nn.Module, size: int, ratio: float) -> tuple[Any, Any]:
    graph = _trace(model, size)
    return graph, irtool.fold_batchnorm(irtool.prune(graph, irtool.plan(graph, "l1", ratio=ratio), "drop"))


def _exported(model: nn.Module, size: int) -> tuple[Any, Any]:
    graph = _trace(model, size)
    with tempfile.TemporaryDirectory() as folder:
        irtool.export_onnx(graph, Path(folder) / "net.onnx", verify=False)
        return graph, irtool.load_onnx(Path(folder) / "net.onnx")


def _unrelated() -> tuple[Any, Any]:
    return _trace(torchvision.models.densenet201(), 32), _trace(torchvision.models.efficientnet_b0(), 32)


CASES: dict[str, tuple[str, Callable[[], tuple[Any, Any]]]] = {
    "chain": ("2,000 nodes without names, one inserted in the middle", _chain),
    "deep": ("PreResNet-596, pruned and folded", lambda: _pruned(irtool.models.PreResNet(596), 32, 0.3)),
    "deep export": ("PreResNet-596 against its ONNX export", lambda: _exported(irtool.models.PreResNet(596), 32)),
    "resnet18": ("ResNet-18, pruned and folded", lambda: _pruned(torchvision.models.resnet18(), 64, 0.5)),
    "densenet121 export": ("DenseNet-121 against its ONNX export", lambda: _exported(torchvision.models.densenet121(), 64)),
    "efficientnet export": ("EfficientNet-B0 against its ONNX export", lambda: _exported(torchvision.models.efficientnet_b0(), 64)),
    "unrelated": ("DenseNet-201 against EfficientNet-B0", _unrelated),
}


def measure(name: str) -> dict[str, Any]:
    """One row."""
    what, make = CASES[name]
    a, b = make()
    wall, cpu = [], []
    for _ in range(REPEATS):
        started, used = time.perf_counter(), time.process_time()
        found = irtool.diff(a, b)
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - used)
    kinds = ("added", "removed", "replaced", "lowered", "attributes", "wiring", "channels", "shapes", "parameters")
    return {
        "what": what, "nodes": [len(a.nodes), len(b.nodes)], "wall_s": round(statistics.median(wall), 3), "cpu_s": round(statistics.median(cpu), 3),
        "same": found.same, "found": {kind: len(getattr(found, kind)) for kind in kinds if getattr(found, kind)}, "page_bytes": len(found.to_html()),
    }  # fmt: skip


def main() -> None:
    """Measure what was asked for; print and keep the table."""
    torch.set_num_threads(1)
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in sys.argv[1:] or CASES:
        rows[name] = measure(name)
        row = rows[name]
        print(
            f"{name:20} {row['nodes'][0]:>5} {row['nodes'][1]:>5} nodes  {row['wall_s']:7.3f} s wall  {row['cpu_s']:7.3f} s CPU  {row['found'] or 'no difference'}"
        )
    with replacing(RESULTS) as temporary:
        temporary.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
