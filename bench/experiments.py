"""The training experiments behind docs/results.md, as a queue that can be stopped at any time and continued.

    python bench/experiments.py --list
    python bench/experiments.py --line preresnet        that line, in order; what is done already is skipped
    python bench/experiments.py --only vgg-sparse       one of them, and what it starts from, if their nets or figures are missing

Each experiment starts from a published checkpoint, a new net or another experiment's result; it may prune; it may train. Its
figures go to bench/results/training/NAME.json, its weights and its checkpoint to runs/experiments/NAME. A killed run
continues at its last finished epoch; a run whose definition was changed is run again. `bench/results.py` makes the tables.

The PreResNet line needs the published checkpoints and `cifar10-jpeg.zip` (--shared FOLDER), the VGG line Fashion-MNIST as idx
files (Debian's dataset-fashion-mnist). One thread.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from experiment_runs import SOURCES, Run, all_runs, with_seed
from torch import nn

import irtool
from irtool.hosts.torch.graph import FxGraph
from irtool.passes import RecalibrateBatchNorm
from irtool.train import Data, History, Settings, distill, evaluate, finetune, fit, sparse
from irtool.workflows.loading.spec import ModelSpec
from irtool.workflows.loading.weights import load_weights

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "training"
WORK = ROOT / "runs" / "experiments"


Stage = Callable[[nn.Module, "Queue", Run, Data, Settings], History]
STAGES: dict[str, Stage] = {
    "plain": lambda module, queue, run, data, settings: fit(module, data, settings, facts={"stage": "plain"}),
    "sparse": lambda module, queue, run, data, settings: sparse(module, data, settings, **run.options),
    "finetune": lambda module, queue, run, data, settings: finetune(module, data, settings),
    "distill": lambda module, queue, run, data, settings: distill(module, queue.result(run.teacher), data, settings, **run.options),
}


class Queue:
    """The experiments, and where their inputs and results lie."""

    def __init__(self, runs: list[Run], shared: Path) -> None:
        self.runs = {run.name: run for run in runs}
        self.shared = shared

    def definition(self, name: str) -> dict[str, Any]:
        """All that decides a run's result, what it starts from included."""
        run = self.runs[name]
        needs = [self.definition(need) for need in (run.start, run.teacher, run.prune.get("ratio")) if need in self.runs]
        source = {name: value for name, value in asdict(SOURCES[run.source]).items() if value is not None}
        return {"run": asdict(run), "source": source, "needs": needs}

    def done(self, name: str) -> bool:
        """Whether the stored result belongs to the run as it is defined."""
        path = RESULTS / f"{name}.json"
        return path.exists() and json.loads(path.read_text())["definition"] == json.loads(json.dumps(self.definition(name)))

    def result(self, name: str) -> FxGraph:
        """The graph that a run ended with; run first if need be."""
        if not self.done(name) or not self.weights(name).exists():
            self.run(name)
        return irtool.load(self.weights(name))

    def weights(self, name: str) -> Path:
        """The path of a run's net. In a fresh clone there are figures of runs without their nets."""
        return WORK / name / "model.safetensors"

    def run(self, name: str) -> None:
        """Do one experiment and write its figures."""
        run = self.runs[name]
        data = SOURCES[run.source].load(self.shared)
        graph, began, notes = self._start(run, data), time.time(), []
        if run.prune:
            graph, notes = self._pruned(graph, run, data)
        folder = WORK / name
        folder.mkdir(parents=True, exist_ok=True)
        history = self._trained(graph, run, data, folder)
        score = evaluate(graph, data) if history is None else None
        irtool.save(graph, folder / "model.safetensors", preprocessing=data.preprocessing.to_dict())
        found = irtool.cost(graph)
        seconds = sum(record.seconds for record in history.records) if history else time.time() - began
        accuracy, loss = (score.accuracy, score.loss) if score else (history.last.test_accuracy, history.last.test_loss)
        report = {
            "name": name, "line": run.line, "command": f"python bench/experiments.py --only {name}", "seed": run.seed,
            "date": time.strftime("%Y-%m-%d", time.gmtime(began)), "seconds": round(seconds, 1), "machine": f"{platform.machine()}, 1 thread", "torch": torch.__version__,
            "data": data.name, "train_images": len(data.train) if history else 0, "test_images": len(data.test), "epochs": len(history.records) if history else 0,
            "params": found.params, "macs": found.macs, "accuracy": accuracy, "loss": loss, "notes": notes,
            "history": history.to_dict() if history else None, "definition": self.definition(name),
        }  # fmt: skip
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
        print(
            f"{time.strftime('%H:%M:%S')} {name}: {100 * accuracy:.2f} %, {found.params:,} parameters, {found.macs:,} MACs, {seconds:.0f} s",
            flush=True,
        )

    def _start(self, run: Run, data: Data) -> FxGraph:
        kind, _, what = run.start.partition(":")
        if kind not in ("published", "new"):
            return self.result(run.start)
        torch.manual_seed(run.seed)
        module = ModelSpec.parse("PreResNet:depth=38" if kind == "published" else what).build()
        if kind == "published":
            load_weights(module, self.shared / "data" / "preresnet38" / f"{what}.pth")
        return irtool.trace(module.eval(), (torch.zeros(2, *data.preprocessing.input_shape),))

    def _pruned(self, graph: FxGraph, run: Run, data: Data) -> tuple[FxGraph, list[str]]:
        residual = "select" if run.line == "preresnet" else "couple"
        ratio = self._matching(graph, run, residual) if run.prune["ratio"] in self.runs else run.prune["ratio"]
        plan = irtool.plan(graph, run.prune["criterion"], ratio, residual=residual, round_to=1, seed=run.seed)
        made = irtool.Prune(plan, run.prune["constants"])(graph)
        if not run.prune["recalibrate"]:
            return made.graph, list(made.notes)
        augment = Settings().augmentation(data.flip, data.preprocessing.size) if run.prune.get("augment") else None
        again = RecalibrateBatchNorm(data.sample(run.prune["recalibrate"], augment=augment).split(128))(made.graph)
        return again.graph, [*made.notes, *again.notes]

    def _matching(self, graph: FxGraph, run: Run, residual: str) -> float:
        """The smallest ratio, in hundredths, that leaves at most as many parameters as another run has."""
        most = irtool.cost(self.result(run.prune["ratio"])).params
        for hundredths in range(1, 100):
            plan = irtool.plan(graph, run.prune["criterion"], hundredths / 100, residual=residual, round_to=1, seed=run.seed)
            if irtool.cost(irtool.prune(graph, plan, "absorb")).params <= most:
                return hundredths / 100
        raise SystemExit(f"{run.name}: no ratio is small enough")

    def _trained(self, graph: FxGraph, run: Run, data: Data, folder: Path) -> History | None:
        if not run.stage:
            return None
        kept = folder / "definition.json"
        definition = json.dumps(self.definition(run.name), sort_keys=True)
        if not kept.exists() or kept.read_text() != definition:
            (folder / "last.pt").unlink(missing_ok=True)
            kept.write_text(definition)
        settings = Settings.merged(Settings(device="cpu", out=folder, resume=True, seed=run.seed), run.settings)
        return STAGES[run.stage](graph.module, self, run, data, settings)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--line", choices=["preresnet", "vgg", "vgg-cifar"], help="only this line")
    parser.add_argument("--only", help="only this run")
    parser.add_argument("--list", action="store_true", help="show the runs, and which are done")
    parser.add_argument(
        "--shared", type=Path, default=ROOT.parent / "shared", help="the folder with data/preresnet38 and data/cifar10-jpeg.zip"
    )
    parser.add_argument("--seed", type=int, default=0, help="of pruning at random, first weights and training; not 0: names end in -seedN")
    options = parser.parse_args()
    torch.set_num_threads(1)
    queue = Queue(with_seed(all_runs(), options.seed), options.shared)
    if options.only and options.only not in queue.runs:
        parser.error(f"no run is called {options.only}; --list shows them")
    for name, run in queue.runs.items():
        if options.list:
            print(f"{'done' if queue.done(name) else '    '} {name}")
        elif options.only == name:
            queue.result(name)
        elif options.only is None and options.line in (None, run.line) and not queue.done(name):
            queue.run(name)


if __name__ == "__main__":
    main()
