"""How fast irtool prunes, beside Torch-Pruning, on the same models in one run.

    python bench/speed.py                      irtool alone
    .bench-venv/bin/python bench/speed.py      with Torch-Pruning (`make bench-peers` makes that environment)
    ... bench/speed.py resnet18 vgg16_bn       these models only; other results in the file stay
    ... bench/speed.py --missing               only what the file lacks: takes up a run that was cut off

irtool: trace, groups, plan, slice and proof at 0.5 by l1, each layer, and the code of the new module. Torch-Pruning:
dependency graph and magnitude pruner at 0.5, each layer, the model's last layer ignored, as its documentation shows.
least: irtool's trace, one look at each weight and one copy of what stays of it; no groups, no plan, no proof, no code. For the question
how much faster irtool could become.
One thread each, alternating, each in a process of its own; the median of the repeats. Wall time is what a user waits for;
CPU time (`time.process_time`) is what the ratio goes by, since other work on the machine does not change it much. A peer
that fails, exceeds the time limit, or whose result does not run, is a row without a ratio.
"""

from __future__ import annotations

import argparse
import importlib.util
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

from irtool.atomic_files import replacing

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "speed.json"
CNNS = """
alexnet vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn
resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d resnext101_64x4d wide_resnet50_2 wide_resnet101_2
densenet121 densenet161 densenet169 densenet201 googlenet inception_v3
mobilenet_v2 mobilenet_v3_small mobilenet_v3_large mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3 squeezenet1_0 squeezenet1_1
efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6 efficientnet_b7
efficientnet_v2_s efficientnet_v2_m efficientnet_v2_l
regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf regnet_x_16gf regnet_x_32gf
regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf regnet_y_16gf regnet_y_32gf
convnext_tiny convnext_small convnext_base convnext_large
""".split()  # regnet_y_128gf is left out for memory: its weights alone are 2.6 GB
OTHERS = ["shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "swin_t", "maxvit_t"]
"""Models that the peer fails on or takes minutes for: shown, with what the peer said."""
DEEP = [f"preresnet{depth}" for depth in (20, 56, 110, 218, 434, 1001)]
SLOW = 20.0
"""A run of more seconds than this is not repeated."""


def irtool_once(model: Any, inputs: Any) -> Any:
    """Everything from the module to a proven, sliced one whose code is compiled."""
    import irtool

    graph = irtool.trace(model, inputs)
    pruned = irtool.prune(graph, irtool.plan(graph, "l1", 0.5, "local"), "drop").module
    assert pruned.code
    return pruned, len(graph.nodes)


def peer_once(model: Any, inputs: Any) -> Any:
    """Torch-Pruning's high-level pruner."""
    import torch
    import torch_pruning as tp

    last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1:]
    pruner = tp.pruner.MagnitudePruner(model, inputs[0], tp.importance.MagnitudeImportance(p=1), pruning_ratio=0.5, ignored_layers=last)
    pruner.step()
    return model, 0


def least(model: Any, inputs: Any) -> Any:
    """Time what irtool cannot do without, each part in the fastest way that torch has: a lower bound."""
    import torch

    import irtool

    module = irtool.trace(model, inputs).module
    with torch.no_grad():
        for weight in [w for w in module.parameters() if w.dim() > 1]:
            torch.linalg.vector_norm(weight.flatten(1), 2, dim=1)
            weight[: max(1, len(weight) // 2), : max(1, weight.shape[1] // 2)].clone()
    return module, 0


PEER, LEAST = "torch-pruning", "least"
TOOLS: dict[str, Callable[[Any, Any], Any]] = {"irtool": irtool_once, PEER: peer_once, LEAST: least}


def build_model(name: str) -> tuple[Any, tuple[Any, ...]]:
    """A randomised model in eval mode, and inputs of the usual size."""
    import torch
    from zoo import build

    if name.startswith("preresnet"):
        from irtool.models import PreResNet

        return PreResNet(int(name.removeprefix("preresnet"))).eval(), (torch.randn(1, 3, 32, 32),)
    model, inputs, _ = build(name)
    return model, inputs if name in ("swin_t", "maxvit_t") else (torch.randn(1, 3, 224, 224),)


def measure(name: str, tool: str) -> dict[str, Any]:
    """Time one tool on one model, and see that the result runs."""
    import torch

    torch.set_num_threads(1)
    model, inputs = build_model(name)
    importlib.import_module({PEER: "torch_pruning"}.get(tool, "irtool"))  # imports are not what is measured
    small = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 4)).eval()
    TOOLS[tool](small, (torch.zeros(1, 3, 8, 8),))  # nor is what the first call imports and compiles
    size = sum(p.numel() * p.element_size() for p in model.parameters()) // 2**20
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    wall, cpu = time.perf_counter(), time.process_time()
    pruned, nodes = TOOLS[tool](model, inputs)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    with torch.no_grad():
        pruned.eval()(*inputs)
    left = sum(p.numel() for p in pruned.parameters())
    return {"seconds": wall, "cpu": cpu, "nodes": nodes, "params": left, "model_mb": size, "extra_mb": peak - held}


def child(name: str, tool: str, limit: float) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--child", name, "--tool", tool]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"over {limit:g} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        return {"error": (done.stderr.strip().splitlines() or ["killed"])[-1][:160]}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def rounds(name: str, tools: list[str], repeats: int, limit: float) -> dict[str, dict[str, Any]]:
    """Alternate the tools; keep the median times of each."""
    runs: dict[str, list[dict[str, Any]]] = {tool: [] for tool in tools}
    for _ in range(repeats):
        for tool, done in runs.items():
            if not any("error" in run or run["seconds"] > SLOW for run in done):
                done.append(child(name, tool, limit))
    found = {}
    for tool, done in runs.items():
        failed = next((run for run in done if "error" in run), None)
        medians = {} if failed else {key: statistics.median(run[key] for run in done) for key in ("seconds", "cpu")}
        found[tool] = failed or {**done[0], **medians, "runs": len(done)}
    return found


def ratio(found: dict[str, dict[str, Any]], key: str, tool: str = "irtool") -> float | None:
    """How many times a tool's time the peer's is; None where one of them gave no result."""
    if any("error" in found.get(name, {"error": "not run"}) for name in (PEER, tool)):
        return None
    return float(found[PEER][key] / found[tool][key])


def line(name: str, found: dict[str, dict[str, Any]]) -> str:
    """One row of the table: CPU seconds of both, ratios of CPU and wall time, peak memory above the model."""
    parts = [f"{run['cpu']:9.3f} s" if "error" not in run else f"failed ({run['error'][:40]})" for run in found.values()]
    ratios = " ".join(f"{value:6.1f}x" if value else "       " for value in (ratio(found, "cpu"), ratio(found, "seconds")))
    own = found["irtool"]
    if "error" in own:
        return f"{name:<20} {'  '.join(parts)}"
    memory = f"+{own['extra_mb']} MB over a model of {own['model_mb']} MB"
    over = "  OVER twice the model + 300 MB" if own["extra_mb"] > 2 * own["model_mb"] + 300 else ""
    return f"{name:<20} {'  '.join(parts):<39} {ratios}  {own['nodes']:>5} nodes  {memory}{over}"


def summary(results: dict[str, Any]) -> list[str]:
    """Geometric means over the CNNs that both prune, and how the time per node grows with depth."""
    lines = []
    for tool, key, word in (("irtool", "cpu", "CPU"), ("irtool", "seconds", "wall"), (LEAST, "cpu", "CPU, the least,")):
        ratios = [value for name, found in results.items() if name in CNNS and (value := ratio(found, key, tool))]
        if ratios:
            mean, below = math.exp(statistics.mean(map(math.log, ratios))), sum(value < 10 for value in ratios)
            lines.append(
                f"geometric mean over {len(ratios)} models that both prune, {word} time: {mean:.1f}x (least {min(ratios):.1f}x, {below} below 10x)"
            )
    deep = {name: results[name]["irtool"] for name in ("preresnet110", "preresnet1001") if "error" not in results.get(name, {"irtool": {"error": 0}})["irtool"]}  # fmt: skip
    if len(deep) == 2:
        shallow, deepest = (run["cpu"] / run["nodes"] for run in deep.values())
        lines.append(f"CPU time a node, PreResNet-1001 over PreResNet-110: {deepest / shallow:.2f}")
    return lines


def plot(results: dict[str, Any], path: Path) -> None:
    """CPU time against nodes, log-log; one point a model, a line for PreResNet of growing depth."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.5, 4.5), constrained_layout=True)
    good = {name: found["irtool"] for name, found in results.items() if "error" not in found["irtool"]}
    deep = [(good[name]["nodes"], good[name]["cpu"]) for name in DEEP if name in good]
    if deep:
        axes.loglog(*zip(*deep, strict=True), "o-", label="irtool, PreResNet 20 to 1001", color="tab:blue")
    for tool, colour in (("irtool", "tab:green"), (PEER, "tab:red")):
        points = [(good[name]["nodes"], found[tool]["cpu"]) for name, found in results.items()
                  if name not in DEEP and name in good and tool in found and "error" not in found[tool]]  # fmt: skip
        if points:
            axes.loglog(*zip(*points, strict=True), "x", label=f"{tool}, torchvision", color=colour)
    axes.set(xlabel="nodes of the graph", ylabel="CPU seconds, one thread", title="trace + plan + slice + proof")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="torchvision names or preresnetDEPTH; all if left out")
    parser.add_argument("--repeats", type=int, default=3, help=f"runs of each tool, median counts; one if it takes over {SLOW:g} s")
    parser.add_argument("--missing", action="store_true", help="only models that the results file lacks")
    parser.add_argument("--limit", type=float, default=150, help="seconds that a run may take")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--tool", help=argparse.SUPPRESS, default="irtool")
    return parser.parse_args()


def main() -> None:
    """Measure, print, write after each model."""
    options = arguments()
    if options.child:
        print(json.dumps(measure(options.child, options.tool)))
        return
    tools = ["irtool", *([PEER, LEAST] if importlib.util.find_spec("torch_pruning") else [])]
    everything = [*CNNS, *OTHERS, *DEEP]
    results: dict[str, Any] = {}
    if RESULTS.exists() and (options.models or options.missing):
        results = json.loads(RESULTS.read_text())
    print(f"{'CPU time of':<20} {'  '.join(tools):<39}     CPU    wall")
    for name in options.models or everything:
        if options.missing and set(tools if name not in DEEP else ["irtool"]) <= set(results.get(name, ())):
            continue
        results[name] = rounds(name, tools if name not in DEEP else ["irtool"], options.repeats, options.limit)
        print(line(name, results[name]), flush=True)
        results = {known: results[known] for known in sorted(results, key=(everything + list(results)).index)}
        RESULTS.parent.mkdir(exist_ok=True)
        with replacing(RESULTS) as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n")
    print(*summary(results), sep="\n")
    plot(results, ROOT / "docs" / "speed.png")


if __name__ == "__main__":
    main()
