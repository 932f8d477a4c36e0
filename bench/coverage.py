"""Models that irtool prunes, and whether each result is right: a row a model, each in a process of its own.

    python bench/coverage.py                 every torchvision model
    python bench/coverage.py --timm          the first model of each timm family (needs `make bench-peers`)
    python bench/coverage.py resnet18 vgg16  some models

Prints a table, and writes bench/results/<which>.json and docs/<which>.md.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 240
"""Seconds for a model and scope."""
MEMORY = 12 << 30
"""Address space of a child, in bytes."""
SCOPES = {"local": ("local",), "global": ("global",), "both": ("local", "global")}


def measure(name: str, scopes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Trace; then for each scope plan at 0.5 by l1, prune, check against the masked original, run backward."""
    import torch
    from zoo import build

    import irtool

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    model, inputs, within = build(name)
    start = time.process_time()
    graph = irtool.trace(model, inputs, within=within)
    traced = time.process_time() - start
    for scope in scopes:
        graph.analyses.clear()  # each scope pays for the whole analysis
        start = time.process_time()
        plan = irtool.plan(graph, "l1", 0.5, scope, round_to=1)  # type: ignore[arg-type]
        smaller = irtool.prune(graph, plan, "drop")
        seconds = traced + time.process_time() - start
        before, after = irtool.cost(graph), irtool.cost(smaller)
        check = irtool.check_prune(graph, plan)
        held = [f"{layer.name}: {layer.reason}" for layer in plan.layers if layer.reason and "graph output" not in layer.reason]
        yield {
            "scope": scope, "tracer": graph.tracer, "part": within or "", "nodes": len(graph.nodes), "params": [before.params, after.params],
            "macs": [before.macs, after.macs], "seconds": round(seconds, 3), "relative": check.relative, "ok": check.ok,
            "inexact": len(check.inexact), "effect": check.effect, "unresolved": list(check.unresolved), "held": len(held), "why": held[:3],
            "reasons": _counted(held), "backward": _backward(smaller), "layers": len(plan.layers), "image": list(inputs[0].shape)[-1:] if isinstance(inputs[0], torch.Tensor) else [],
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }  # fmt: skip


def _counted(held: Sequence[str]) -> dict[str, int]:
    """How many layers each kind of reason holds back, the places left out."""
    return dict(Counter(reason.split(": ", 1)[1].split(" (at ")[0] for reason in held).most_common(6))


def _backward(graph: Any) -> bool:
    """Whether gradients reach the pruned graph's parameters in train mode."""
    import torch
    from torch.utils._pytree import tree_leaves

    graph.module.train()
    for norm in graph.module.modules():
        if isinstance(norm, torch.nn.modules.batchnorm._BatchNorm):
            norm.eval()  # statistics over one image of one pixel do not exist
    outputs = [leaf for leaf in tree_leaves(graph.module(*graph.example_inputs)) if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
    sum(leaf.float().square().mean() for leaf in outputs).backward()  # type: ignore[union-attr]
    reached = any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in graph.module.parameters())
    graph.module.zero_grad()
    return reached


def rows(name: str, scopes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`measure` in a child process, so that a crash is a row and not the end."""
    command = [sys.executable, __file__, "--child", name, "--scope", "both" if len(scopes) > 1 else scopes[0]]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=TIMEOUT * len(scopes),
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
        )
        output, said = done.stdout, (done.stderr.strip().splitlines() or ["killed (memory?)"])[-1][:300]
    except subprocess.TimeoutExpired as error:
        output, said = (error.stdout or b"").decode(), f"no answer in {TIMEOUT * len(scopes)} s"
    found = {row["scope"]: row for row in (json.loads(line) for line in output.splitlines() if line.startswith("{"))}
    return {scope: found.get(scope, {"error": said}) for scope in scopes}


def cells(name: str, scope: str, found: dict[str, Any]) -> list[str]:
    """One row of the table."""
    if "error" in found:
        return [name, scope, "", "", "", "", "", "", found["error"].replace("|", "/")]
    share = [f"-{100 * (1 - after / before):.0f} %" if before else "" for before, after in (found["params"], found["macs"])]
    error = f"{found['relative']:.1e}" + (f" ({found['inexact']} inexact, effect {found['effect']:.0e})" if found["inexact"] else "")
    left = f"{found['held']} of {found['layers']} layers: {found['why'][0][:110]}" if found["held"] else ""
    part = f" ({found['part']})" if found["part"] else ""
    return [name + part, scope, found["tracer"], str(found["nodes"]), *share, f"{found['seconds']:.2f}", error, left.replace("|", "/")]


HEAD = ["model", "scope", "tracer", "nodes", "params", "MACs", "s", "masked = sliced", "left alone"]


def summary(results: dict[str, dict[str, Any]]) -> list[str]:
    """The sums of the table."""
    from zoo import kind_of

    good = {key: found for key, found in results.items() if "error" not in found}
    exact = sum(found["relative"] <= 1e-9 for found in good.values())
    shrunk = sum(found["params"][1] <= 0.7 * found["params"][0] for found in good.values())
    local = [found for key, found in good.items() if key.endswith("local") and kind_of(key.split()[0]) == "classification"]
    lines = [
        f"{len(good)} of {len(results)} runs pruned, {exact} equal to the masked original within 1e-9, {sum(f['backward'] for f in good.values())} train on"
    ]
    lines.append(f"{shrunk} lost at least 30 % of their parameters")
    if local:
        lines.append(
            f"{sum(f['macs'][1] <= 0.4 * f['macs'][0] for f in local)} of {len(local)} classification models lost at least 60 % of their MACs at 0.5 local"
        )
    return lines


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--timm", action="store_true")
    parser.add_argument("--large", action="store_true", help="also models that need over 16 GB")
    parser.add_argument("--scope", choices=["local", "global", "both"], default="both")
    parser.add_argument("--missing", action="store_true", help="go on with an earlier run: only models without a sound row")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        for found in measure(options.child, SCOPES[options.scope]):
            print(json.dumps(found), flush=True)
        return
    from zoo import TIMM_OPTIONS, TOO_LARGE, timm_names, torchvision_names

    names = options.models or ([f"timm:{name}" for name in timm_names()] if options.timm else torchvision_names())
    skipped = [name for name in names if name in TOO_LARGE and not options.large]
    which = "coverage-timm" if options.timm else "coverage-torchvision"
    results = earlier(which) if options.missing else {}
    for name in names:
        scopes = [scope for scope in SCOPES[options.scope] if name not in skipped and f"{name} {scope}" not in results]
        for scope, found in rows(name, scopes).items() if scopes else ():
            results[f"{name} {scope}"] = found
            print("  ".join(cells(name, scope, found)), flush=True)
        table = [cells(*key.split(), found) for key, found in sorted(results.items())]  # type: ignore[arg-type]
        closing = summary(results) + ([f"left out for memory: {', '.join(skipped)}"] if skipped else [])
        closing += [f"{name} built with {given}" for name, given in TIMM_OPTIONS.items()] if options.timm else []
        if not options.models:  # after each model, so that an interrupted run leaves what it has
            write(
                which,
                [*closing, f"{len({key.split()[0] for key in results})} of {len(names) - len(skipped)} models measured"],
                table,
                results,
            )
    print("\n".join(closing))


def earlier(which: str) -> dict[str, dict[str, Any]]:
    """The sound rows of an earlier run."""
    path = ROOT / "bench" / "results" / f"{which}.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    return {key: row for key, row in found.items() if "error" not in row}


def write(which: str, closing: list[str], table: list[list[str]], results: dict[str, Any]) -> None:
    """JSON for programs, Markdown for people."""
    from irtool.atomic_files import replacing

    (ROOT / "bench" / "results").mkdir(exist_ok=True)
    with replacing(ROOT / "bench" / "results" / f"{which}.json") as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n")
    lines = [
        f"# {which}",
        "",
        "Pruned at 0.5 by `l1`; made by `python bench/coverage.py`. Seconds are CPU time of one thread for trace, plan,",
        "slice and proof.",
        "",
    ]
    lines += [f"- {line}" for line in closing] + ["", "| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    lines += ["| " + " | ".join(row) + " |" for row in table]
    (ROOT / "docs" / f"{which}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
