"""How fast irtool prunes, beside Torch-Pruning, on the same models in one run.

    python bench/speed.py                      irtool alone
    .bench-venv/bin/python bench/speed.py      with Torch-Pruning (`make bench-peers` makes that environment)

irtool: trace, groups, plan, slice and proof at 0.5 by l1, each layer. Torch-Pruning: dependency graph and magnitude
pruner at 0.5, each layer, the model's last layer ignored, as its documentation shows. One thread each, alternating, each
in a process of its own; seconds are wall time, the median of the repeats. A peer that fails, or whose result does not
run, is a row without a ratio.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODELS = ["alexnet", "vgg16_bn", "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "densenet121", "densenet201", "googlenet", "mobilenet_v2",
          "mobilenet_v3_large", "mnasnet1_0", "squeezenet1_0", "efficientnet_b0", "efficientnet_v2_s", "regnet_x_400mf", "regnet_y_400mf", "convnext_tiny",
          "shufflenet_v2_x1_0", "swin_t", "maxvit_t"]  # fmt: skip
DEPTHS = [20, 56, 110, 218, 434, 1001]
TIMEOUT = 150


def irtool_once(model: Any, inputs: Any) -> Any:
    """Everything from the module to a proven, sliced one."""
    import irtool

    graph = irtool.trace(model, inputs)
    return irtool.prune(graph, irtool.plan(graph, "l1", 0.5, "local"), "drop").module, len(graph.nodes)


def peer_once(model: Any, inputs: Any) -> Any:
    """Torch-Pruning's high-level pruner."""
    import torch
    import torch_pruning as tp

    last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1:]
    pruner = tp.pruner.MagnitudePruner(model, inputs[0], tp.importance.MagnitudeImportance(p=1), pruning_ratio=0.5, ignored_layers=last)
    pruner.step()
    return model, 0


TOOLS: dict[str, Callable[[Any, Any], Any]] = {"irtool": irtool_once, "torch-pruning": peer_once}


def measure(name: str, tool: str) -> dict[str, Any]:
    """Time one tool on one model, and see that the result runs."""
    import torch
    from zoo import build

    torch.set_num_threads(1)
    if name.startswith("preresnet"):
        from irtool.models import PreResNet

        model, inputs = PreResNet(int(name.removeprefix("preresnet"))).eval(), (torch.randn(1, 3, 32, 32),)
    else:
        model, inputs, _ = build(name)
        if name not in ("swin_t", "maxvit_t"):
            inputs = (torch.randn(1, 3, 224, 224),)
    if tool == "irtool":
        import irtool  # noqa: F401  imports are not what is measured
    else:
        import torch_pruning  # noqa: F401
    small = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 4)).eval()
    TOOLS[tool](small, (torch.zeros(1, 3, 8, 8),))  # first calls import and compile things
    size = sum(p.numel() * p.element_size() for p in model.parameters()) // 2**20
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    start = time.perf_counter()
    pruned, nodes = TOOLS[tool](model, inputs)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    with torch.no_grad():
        pruned.eval()(*inputs)
    return {
        "seconds": seconds,
        "nodes": nodes,
        "params": sum(p.numel() for p in pruned.parameters()),
        "model_mb": size,
        "extra_mb": peak - held,
    }


def child(name: str, tool: str) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--child", name, "--tool", tool]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"over {TIMEOUT} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {"error": (done.stderr.strip().splitlines() or ["killed"])[-1][:160]}


def rounds(name: str, tools: list[str], repeats: int) -> dict[str, dict[str, Any]]:
    """Alternate the tools; keep the median time of each."""
    runs: dict[str, list[dict[str, Any]]] = {tool: [] for tool in tools}
    for _ in range(repeats):
        for tool in tools:
            if not any("error" in run for run in runs[tool]):
                runs[tool].append(child(name, tool))
    found = {}
    for tool, done in runs.items():
        failed = next((run for run in done if "error" in run), None)
        found[tool] = failed or {**done[0], "seconds": statistics.median(run["seconds"] for run in done)}
    return found


def line(name: str, found: dict[str, dict[str, Any]]) -> str:
    """One row of the table."""
    parts = [
        f"{tool} {run['seconds']:.2f} s" if "error" not in run else f"{tool} failed ({run['error'][:60]})" for tool, run in found.items()
    ]
    both = all("error" not in run for run in found.values()) and len(found) == 2
    ratio = f"{found['torch-pruning']['seconds'] / found['irtool']['seconds']:.1f}x" if both else ""
    own = found["irtool"]
    memory = f"+{own['extra_mb']} MB over a model of {own['model_mb']} MB" if "error" not in own else ""
    return f"{name:<20} {'  '.join(parts):<64} {ratio:>7}  {memory}"


def plot(results: dict[str, Any], path: Path) -> None:
    """Time against nodes, log-log; one point a model, a line for PreResNet of growing depth."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.5, 4.5), constrained_layout=True)
    good = {name: found["irtool"] for name, found in results.items() if "error" not in found["irtool"]}
    deep = [(run["nodes"], run["seconds"]) for name, run in good.items() if name.startswith("preresnet")]
    axes.loglog(*zip(*deep, strict=True), "o-", label="irtool, PreResNet 20 to 1001", color="tab:blue") if deep else None
    for tool, colour in (("irtool", "tab:green"), ("torch-pruning", "tab:red")):
        points = [(good[name]["nodes"], found[tool]["seconds"]) for name, found in results.items()
                  if not name.startswith("preresnet") and name in good and tool in found and "error" not in found[tool]]  # fmt: skip
        if points:
            axes.loglog(*zip(*points, strict=True), "x", label=f"{tool}, torchvision", color=colour)
    axes.set(xlabel="nodes of the graph", ylabel="seconds, one thread", title="trace + plan + slice + proof")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--tool", help=argparse.SUPPRESS, default="irtool")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child, options.tool)))
        return
    import importlib.util

    tools = ["irtool", *(["torch-pruning"] if importlib.util.find_spec("torch_pruning") else [])]
    results = {}
    for name in options.models or [*MODELS, *(f"preresnet{depth}" for depth in DEPTHS)]:
        results[name] = rounds(name, tools if not name.startswith("preresnet") else ["irtool"], options.repeats)
        print(line(name, results[name]), flush=True)
    ratios = [
        f["torch-pruning"]["seconds"] / f["irtool"]["seconds"]
        for f in results.values()
        if len(f) == 2 and not any("error" in run for run in f.values())
    ]
    if ratios:
        print(f"geometric mean over {len(ratios)} models that both prune: {math.exp(statistics.mean(map(math.log, ratios))):.1f}x")
    (ROOT / "bench" / "results").mkdir(exist_ok=True)
    (ROOT / "bench" / "results" / "speed.json").write_text(json.dumps(results, indent=1) + "\n")
    plot(results, ROOT / "docs" / "speed.png")


if __name__ == "__main__":
    main()
