"""Models that people bring: traced as they trace them, pruned by half, and tried in everything that they would do with the result.

    python bench/brought.py                       every model, in a process of its own; goes on where it was interrupted
    python bench/brought.py ultralytics own/edsr  those whose names begin so, again
    python bench/brought.py --again-if-failed     only models without a sound row

Needs ultralytics, transformers, segmentation-models-pytorch, efficientnet_pytorch, monai and pytorchcv in `.bench-venv`.
Prints a table, and writes bench/results/brought.json and docs/brought.md.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "brought.json"
SECONDS = 600
"""CPU time for a model; on the clock it may take six times as long."""
MEMORY = 14 << 30
"""Address space of a child, in bytes."""
CLOSE = 1e-4
"""How far two results in float32 may lie apart, relative to the largest entry."""
_NOT_TAKEN = "not taken by the model"


def measure(name: str) -> Iterator[dict[str, Any]]:
    """Give what was found of a model, in parts, so that what comes later cannot lose it."""
    import torch
    from brought_models import build

    import irtool

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    brought = build(name)
    model, example = brought.model, _image(brought.shape)
    before = _state(model, example)
    start = time.process_time()
    graph = irtool.trace(model, example)
    traced = time.process_time() - start
    plan = irtool.plan(graph, "l1", 0.5, round_to=1)
    pruned = irtool.prune(graph, plan, "drop")
    seconds = time.process_time() - start
    old, new = irtool.cost(graph), irtool.cost(pruned)
    held = [f"{layer.name}: {layer.reason}" for layer in plan.layers if layer.reason and "graph output" not in layer.reason]
    yield {
        "tracer": graph.tracer, "nodes": len(graph.nodes), "params": [old.params, new.params], "macs": [old.macs, new.macs],
        "channels": round(plan.removed / max(sum(layer.total for layer in plan.layers), 1), 3), "trace_s": round(traced, 1),
        "seconds": round(seconds, 1), "notes": list(graph.notes), "pruned_notes": [note for note in pruned.notes if note not in graph.notes],
        "held": len(held), "why": held[:3], "untouched": _differences(before, _state(model, example)),
        "moves": _moves(pruned, brought.shape),
    }  # fmt: skip
    check = irtool.check_prune(graph, plan)
    yield {"ok": check.ok, "relative": check.relative, "inexact": len(check.inexact), "traced": check.traced, "wrong": check.wrong}
    sizes = [_at(graph, plan, shape) for shape in _others(brought)]
    if all(size["verdict"] == _NOT_TAKEN for size in sizes):  # by its pooling, say: another batch alone tells more than nothing
        sizes.append(_at(graph, plan, (brought.shape[0] + 2, *brought.shape[1:])))
    yield {"sizes": sizes}
    yield _archive(pruned, model, example)
    yield _onnx(pruned, brought.shape)
    yield _training(pruned, brought)


def _image(shape: Sequence[int], seed: int = 0) -> Any:
    """Noise over coarse patches of one colour each: behind a mean over all places one image of noise alone is like the other."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn((*shape[:2], *(-(-side // 16) for side in shape[2:])), generator=generator)
    for axis, side in enumerate(shape[2:], 2):
        coarse = coarse.repeat_interleave(16, axis).narrow(axis, 0, side)
    return (
        torch.rand(tuple(shape), generator=generator)
        + 2 * coarse
        + 3 * torch.randn((*shape[:2], *[1] * (len(shape) - 2)), generator=generator)
    )


def _moves(pruned: Any, shape: Sequence[int]) -> float:
    """How much of the outputs hangs on the image: of a net whose outputs do not, equality would tell nothing."""
    from irtool.hosts.torch.tracing.checking.compare import apart, observed

    return apart(*(observed(pruned.module, (_image(shape, seed),)) for seed in (7, 8)))


def _leaves(result: Any) -> list[Any]:
    import torch
    from torch.utils._pytree import tree_leaves

    if hasattr(result, "to_tuple"):
        result = result.to_tuple()
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]


def _state(model: Any, example: Any) -> dict[str, Any]:
    """State that tracing must leave as it is. The outputs last: a model in train mode writes its statistics."""
    import copy

    import torch

    state = {key: value.clone() for key, value in model.state_dict().items()}
    hooks = {path: [len(getattr(child, kind)) for kind in HOOKS] for path, child in model.named_modules()}
    modes = {path: child.training for path, child in model.named_modules()}
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        outputs = _leaves(copy.deepcopy(model)(example))
    return {
        "state": state,
        "hooks": hooks,
        "modes": modes,
        "keys": {p: sorted(m.__dict__) for p, m in model.named_modules()},
        "outputs": outputs,
    }


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")


def _differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The names of what changed; empty if the model is untouched."""
    import torch

    found = [name for name in ("hooks", "modes", "keys") if one[name] != other[name]]
    if one["state"].keys() != other["state"].keys() or any(not torch.equal(one["state"][k], other["state"][k]) for k in one["state"]):
        found.append("state_dict")
    pairs = list(zip(one["outputs"], other["outputs"], strict=False))
    if len(one["outputs"]) != len(other["outputs"]) or any(not torch.equal(a, b) for a, b in pairs):
        found.append("outputs")
    return found


def _others(brought: Any) -> list[tuple[int, ...]]:
    """Another batch of smaller images, and a larger image."""
    n, channels, *image = brought.shape
    smaller = [max(size - (1 + axis) * brought.step, brought.step) for axis, size in enumerate(reversed(image))][::-1]
    larger = [size + brought.step * (axis == len(image) - 1) for axis, size in enumerate(image)]
    return [(n + 2, channels, *smaller), (n, channels, *larger)]


def _at(graph: Any, plan: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """The graph against its model, and the pruned graph against the masked one, at another size: or what refuses it."""
    import irtool
    from irtool.hosts.torch.tracing.checking.compare import apart_from, observed

    x = _image(shape, 1)
    expected = observed(graph.origin, (x,), graph.decided)
    if expected is None:
        return {"shape": shape, "verdict": _NOT_TAKEN}
    found = observed(graph.module, (x,))
    if found is None:
        return {"shape": shape, "verdict": "refused, told" if graph.notes else "REFUSED IN SILENCE"}
    off = apart_from(graph.origin, graph.module, (x,), graph.decided, expected, found)
    try:
        check = irtool.check_prune(graph, plan, (x,))
    except irtool.errors.IrtoolError as error:
        return {"shape": shape, "traced": off} | _without_masks(graph, plan, x, str(error))
    equal = off <= CLOSE and check.relative <= check.tolerance and not check.unresolved
    return {"shape": shape, "verdict": "equal" if equal else "WRONG", "traced": off, "relative": check.relative}


def _without_masks(graph: Any, plan: Any, x: Any, said: str) -> dict[str, Any]:
    """The pruned graph beside one that was traced at this size, pruned by the same plan and checked there.

    For graphs whose masks fit the example's size alone: behind a pixel shuffle they lie on pixels, in front of attention on the batch.
    """
    import irtool
    from irtool.hosts.torch.tracing.checking.compare import apart, observed

    pruned = irtool.prune(graph, plan, "drop")
    found = observed(pruned.module, (x,))
    if found is None:
        return {"verdict": "refused, told" if any("refused at sizes" in note for note in pruned.notes) else f"FAILED: {said}"[:200]}
    here = irtool.trace(graph.origin, x)
    try:
        check = irtool.check_prune(here, plan)
        off = apart(observed(irtool.prune(here, plan, "drop").module, (x,)), found)
    except irtool.errors.IrtoolError as error:
        return {"verdict": f"FAILED: {error}"[:200]}
    return {"verdict": "equal" if check.ok and off <= CLOSE else "WRONG", "relative": max(off, check.relative)}


def _archive(pruned: Any, model: Any, example: Any) -> dict[str, Any]:
    """Save, load, compare."""
    import torch

    import irtool

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pruned.irtool"
        try:
            irtool.save(pruned, path)
            loaded = irtool.load(path)
            how = "equal"
        except irtool.errors.IrtoolError as error:
            if "Load it into the class" not in str(error):
                return {"archive": f"{error}"[:300]}
            loaded, how = irtool.load(path, model), "equal, into the class"
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            one = _leaves(pruned.module(example))
            torch.manual_seed(0)
            other = _leaves(loaded.module(example))
    same = len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    return {"archive": how if same else "WRONG"}


def _onnx(pruned: Any, shape: Sequence[int]) -> dict[str, Any]:
    """Export with a free batch; compared at another one with the pruned graph. A batch that is fixed is said so by the exporter."""
    import irtool

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pruned.onnx"
        for free in (True, False):
            try:
                made = irtool.export_onnx(pruned, path, dynamic_batch=free)
                break
            except irtool.errors.IrtoolError as error:
                said = f"{error}"[:300]
        else:
            return {"onnx": said}
        found = _session_error(pruned, path, (shape[0] + (2 if free else 0), *shape[1:]))
    verdict = "equal" if found <= 1e-3 else f"WRONG: {found:.1e}"
    return {
        "onnx": f"free batch, {verdict}" if free else f"fixed batch, {verdict} ({said})",
        "exporter": made.exporter,
        "onnx_error": found,
    }


def _session_error(pruned: Any, path: Path, shape: Sequence[int]) -> float:
    import onnx
    import onnxruntime
    import torch

    from irtool.engines.agreement import relative_error, row_error

    x = _image(shape, 3)
    training = pruned.module.training
    pruned.module.eval()
    with torch.no_grad():
        expected = [leaf.numpy() for leaf in _leaves(pruned.module(x))]
    pruned.module.train(training)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    chooses = any(node.op_type == "TopK" for node in onnx.load(str(path)).graph.node)  # rounding decides what comes first
    outputs = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    worst = 0.0
    for one, other in zip(expected, outputs, strict=True):
        if one.shape != other.shape:
            return float("inf")
        if one.dtype.kind == "f" and one.size:
            worst = max(worst, relative_error(other, one) if not chooses else min(relative_error(other, one), row_error(other, one)))
    return worst


def _training(pruned: Any, brought: Any) -> dict[str, Any]:
    """A step in train mode: gradients are finite, and the loss falls."""

    module = pruned.module.train()
    x = _image((2, *brought.shape[1:]), 5)
    try:
        module(x)
    except Exception:  # a batch that the model does not take either, or that is fixed
        x = _image(brought.shape, 5)
    losses = []
    try:
        for rate in (1e-2, 1e-3, 1e-4, 1e-5):
            losses = list(_step(module, x, rate))
            if losses[1] < losses[0]:
                return {"training": "falls", "loss": losses}
    except (RuntimeError, ValueError) as error:
        return {"training": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    return {"training": "DOES NOT FALL" if all(loss == loss for loss in losses) else "NOT FINITE", "loss": losses}


def _step(module: Any, x: Any, rate: float) -> Iterator[float]:
    """The loss before and after a step along the gradient; the weights are put back."""
    import torch

    weights = [p for p in module.parameters() if p.requires_grad]
    kept = [p.detach().clone() for p in weights]
    gradients: list[Any] = []
    for last in (False, True):
        torch.manual_seed(0)
        leaves = [leaf for leaf in _leaves(module(x)) if leaf.is_floating_point() and leaf.requires_grad and torch.isfinite(leaf).all()]
        loss = sum(leaf.float().square().mean() for leaf in leaves)
        yield float(loss)
        if last:
            break
        gradients = list(torch.autograd.grad(loss, weights, allow_unused=True))  # type: ignore[arg-type]
        norm = sum(float(g.square().sum()) for g in gradients if g is not None) ** 0.5
        with torch.no_grad():
            for p, g in zip(weights, gradients, strict=True):
                if g is not None:
                    p.sub_(g * (rate / max(norm, 1e-12)))
    with torch.no_grad():
        for p, old in zip(weights, kept, strict=True):
            p.copy_(old)


def row(name: str) -> dict[str, Any]:
    """`measure` in a child process, so that a crash is a row and not the end."""
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--child", name],
            capture_output=True, text=True, timeout=6 * SECONDS, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
        )  # fmt: skip
        output, said = (
            done.stdout,
            (done.stderr.strip().splitlines() or ["killed (memory, or CPU time)"])[-1][:300] if done.returncode else "",
        )
    except subprocess.TimeoutExpired as error:
        output, said = (error.stdout or b"").decode(), f"no answer in {6 * SECONDS} s"
    found: dict[str, Any] = {}
    for line in output.splitlines():
        if line.startswith("{"):
            found |= json.loads(line)
    return found | ({"error": said} if said else {})


HEAD = [
    "model",
    "tracer",
    "params",
    "channels",
    "MACs",
    "s",
    "check",
    "other sizes",
    "archive",
    "ONNX",
    "training",
    "untouched",
    "left alone, notes",
]


def faults(found: dict[str, Any]) -> list[str]:
    """Faults of a row, each wrong or silent; a refusal that is told is neither."""
    if "error" in found:
        return [found["error"]]
    bad = [] if found.get("moves", 1) > 1e-3 else ["its outputs do not hang on the image: it tells nothing"]
    bad += [] if found["ok"] else [f"check {found['relative']:.0e}, traced {found['traced']:.0e}"]
    bad += [f"{tuple(size['shape'])}: {size['verdict']}" for size in found["sizes"] if size["verdict"][:4].isupper()]
    bad += [] if found["archive"].startswith("equal") else [f"archive: {found['archive']}"]
    bad += [] if "equal" in found["onnx"] else [f"ONNX: {found['onnx']}"]
    bad += [] if found["training"] == "falls" else [f"training: {found['training']}"]
    return bad + [f"the model's {what} changed" for what in found["untouched"]]


def cells(name: str, found: dict[str, Any]) -> list[str]:
    """One row of the table."""
    if "tracer" not in found:
        return [name, *[""] * (len(HEAD) - 2), found["error"].replace("|", "/")]
    params, macs = (f"-{100 * (1 - after / before):.0f} %" if before else "" for before, after in (found["params"], found["macs"]))
    sizes = ", ".join(size["verdict"] for size in found.get("sizes", []))
    check = f"{found['relative']:.0e}" + (f" ({found['inexact']} inexact)" if found["inexact"] else "") if "relative" in found else ""
    said = [found["error"]] if "error" in found else []
    said += [f"{found['held']} layers: {found['why'][0][:100]}"] if found["held"] else []
    said += [note[:140] for note in found["notes"]]
    return [
        name, found["tracer"], params, f"-{100 * found['channels']:.0f} %", macs, f"{found['seconds']:.1f}", check, sizes,
        found.get("archive", ""), found.get("onnx", "")[:60], found.get("training", ""), "yes" if not found["untouched"] else ", ".join(found["untouched"]),
        "; ".join(said).replace("|", "/"),
    ]  # fmt: skip


def write(results: dict[str, Any], count: int, path: Path) -> None:
    """JSON for programs, and Markdown for people where it is the table of the docs."""
    from irtool.atomic_files import replacing

    with replacing(path) as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n")
    if path == RESULTS:
        (ROOT / "docs" / "brought.md").write_text("\n".join(page(results, count)) + "\n")


def page(results: dict[str, Any], count: int) -> list[str]:
    """The lines of docs/brought.md."""
    wrong = {name: faults(found) for name, found in results.items() if faults(found)}
    lines = [
        "# Models that people bring", "",
        "Packages' models with random weights, traced as their users trace them (batch 1; detectors in eval mode, in train mode and set up",
        "for export), pruned at 0.5 by `l1`; made by `python bench/brought.py`. *s* is CPU time of one thread for trace, plan and prune.",
        "*check* is the pruned graph beside the masked one in float64. *other sizes* are a batch of three smaller images, and a larger image:",
        "the graph beside the model, and the pruned graph beside the masked one. *training* is one step in train mode.",
        "*untouched* compares the model's weights, hooks, modes, attributes and outputs before and after.", "",
        f"- {len(results)} of {count} models measured; {len(results) - len(wrong)} without a fault",
    ]  # fmt: skip
    lines += [f"- {name}: {'; '.join(found)}".replace("|", "/")[:400] for name, found in wrong.items()]
    lines += ["", "| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    return lines + ["| " + " | ".join(cells(name, found)) + " |" for name, found in results.items()]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="beginnings of names; these are measured again")
    parser.add_argument("--again-if-failed", action="store_true", help="measure again what has a fault")
    parser.add_argument("--table", action="store_true", help="write the page from the results that there are")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the rows go (docs/brought.md is written with the default alone)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        for found in measure(options.child):
            print(json.dumps(found), flush=True)
        return
    from brought_models import models

    names = [name for name in models() if not options.models or name.startswith(tuple(options.models))]
    path: Path = options.json
    results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    for name in [] if options.table else names:
        if name in results and not options.models and not (options.again_if_failed and faults(results[name])):
            continue
        results[name] = row(name)
        print("  ".join(cells(name, results[name])), "  FAULTS: " * bool(faults(results[name])), faults(results[name]) or "", flush=True)
        results = {known: results[known] for known in models() if known in results}
        write(results, len(models()), path)
    write(results, len(models()), path)
    print("\n".join(page(results, len(models()))[8:9]))


if __name__ == "__main__":
    main()
