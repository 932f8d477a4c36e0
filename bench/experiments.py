"""The training experiments behind docs/results.md, as a queue that can be stopped at any time and continued.

    python bench/experiments.py --list
    python bench/experiments.py --line preresnet        that line, in order; what is done already is skipped
    python bench/experiments.py --only vgg-sparse       one of them (and what it starts from, if that is missing)

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
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import irtool
from irtool.cli.models import ModelSpec
from irtool.cli.weights import load_weights
from irtool.ir import FxGraph
from irtool.passes import RecalibrateBatchNorm
from irtool.train import Data, History, Settings, distill, evaluate, finetune, fit, load_data, sparse
from irtool.train.split import Part

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "training"
WORK = ROOT / "runs" / "experiments"
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class Source:
    """A dataset as the experiments use it.

    Attributes:
        title: for the tables.
        path: below the shared folder, or absolute.
        train: at most so many training images, drawn at random.
        test: likewise.
        size: pixels to scale to; by default the images' own.
        held_out: score on training images that are not trained on, so that choosing by the score leaves the test images alone.
    """

    title: str
    path: str
    train: int
    test: int = 10_000
    held_out: bool = False
    size: int | None = None

    def load(self, shared: Path) -> Data:
        """Read it, as colour images."""
        data = _loaded(str(shared / self.path), self.size)
        order = _drawn(len(data.train))
        train = Part(data.train, order[: self.train].sort().values)
        test = (
            Part(data.train, order[self.train : self.train + self.test])
            if self.held_out
            else Part(data.test, _drawn(len(data.test), self.test))
        )
        return Data(self.title, train, test, data.flip)


def _drawn(length: int, most: int | None = None) -> torch.Tensor:
    """At most so many places of `length`, the same for every run: a dataset may lie in the order of its classes."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(0))[:most]


@cache
def _loaded(path: str, size: int | None) -> Data:
    return load_data(path, channels=3, image_size=size)


@dataclass(frozen=True)
class Run:
    """One experiment.

    Attributes:
        start: `published:NAME`, `new:MODEL`, or another run's name.
        source: a key of `SOURCES`.
        prune: criterion, ratio, constants, recalibrate (training images; 0 is off), and augment: whether those images are cropped
            and mirrored. A run's name as the ratio: the ratio that leaves at most as many parameters as that run has.
        stage: what training follows: a key of `STAGES`, or nothing.
        settings: of the training.
        options: of the stage (strength, alpha, temperature).
        teacher: another run's name.
    """

    name: str
    line: str
    start: str
    source: str
    prune: Mapping[str, Any] = field(default_factory=dict)
    stage: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    teacher: str = ""
    seed: int = 0


SOURCES = {
    "cifar": Source("CIFAR-10 (JPEG)", "data/cifar10-jpeg.zip", 20_000),
    "cifar-train": Source("CIFAR-10 (JPEG)", "data/cifar10-jpeg.zip", 10_000),
    "cifar-lr": Source("CIFAR-10 (JPEG), 1,000 held-out training images", "data/cifar10-jpeg.zip", 2_000, 1_000, held_out=True),
    "fashion": Source("Fashion-MNIST at 32x32", str(FASHION_MNIST), 8_000, 5_000, size=32),
}
EPOCHS = 2
LEARNING_RATE = 0.005
"""Of the three tried on held-out images it is the one that does not throw the pruned net back."""


def pruning(
    ratio: float, constants: str, *, criterion: str = "bn_scale", recalibrate: int = 0, augment: bool = False
) -> tuple[str, dict[str, Any]]:
    """The end of a run's name, and what `Run.prune` holds."""
    how = "random" if criterion == "random" else constants
    ending = f"{ratio:g}-{how}{'-recalibrated' if recalibrate else ''}{'-augmented' if augment else ''}"
    plan = {"criterion": criterion, "ratio": ratio, "constants": constants, "recalibrate": recalibrate}
    return ending, plan | ({"augment": True} if augment else {})


def preresnet_runs() -> list[Run]:
    """The published PreResNet-38 and its pruned nets; nothing is trained before the figures without training are there."""

    def pruned(ratio: float, constants: str, **more: Any) -> Run:
        ending, plan = pruning(ratio, constants, **more)
        return Run(f"preresnet-{ending}", "preresnet", "published:sparse", "cifar", plan)

    def trained(
        name: str, start: str, stage: str, teacher: str = "", lr: float = LEARNING_RATE, source: str = "cifar-train", epochs: int = EPOCHS
    ) -> Run:
        settings = {
            "epochs": epochs,
            "lr": lr,
            "schedule": "one-cycle",
            "weight_decay": 5e-4,
            "channels_last": start == "preresnet-sparse",
            "evaluate_every": 0,
        }
        options = {"alpha": 0.9, "temperature": 3.0} if teacher else {}
        return Run(name, "preresnet", start, source, {}, stage, settings, options, teacher)

    short = "preresnet-0.7-absorb"
    return [
        Run("preresnet-sparse", "preresnet", "published:sparse", "cifar"),
        *(pruned(ratio, constants) for ratio in (0.7, 0.5) for constants in ("drop", "absorb")),
        pruned(0.7, "absorb", criterion="random"),
        *(trained(f"preresnet-lr-{lr:g}", short, "finetune", lr=lr, source="cifar-lr", epochs=1) for lr in (0.005, 0.02, 0.08)),
        trained("preresnet-sparse-finetuned", "preresnet-sparse", "finetune"),
        trained("preresnet-0.7-finetuned", short, "finetune"),
        trained("preresnet-0.7-kd", short, "distill", "preresnet-sparse-finetuned"),
        *(pruned(ratio, "absorb", recalibrate=1024, augment=augment) for ratio in (0.7, 0.5) for augment in (False, True)),
        Run("preresnet-sparse-recalibrated", "preresnet", "published:sparse", "cifar", pruning(0.0, "absorb", recalibrate=1024)[1]),
        Run("preresnet-sparse-recalibrated-augmented", "preresnet", "published:sparse", "cifar", pruning(0.0, "absorb", recalibrate=1024, augment=True)[1]),
        Run("preresnet-random-as-0.7", "preresnet", "published:sparse", "cifar", {"criterion": "random", "ratio": short, "constants": "absorb", "recalibrate": 0}),
        trained("preresnet-random-as-0.7-finetuned", "preresnet-random-as-0.7", "finetune"),
    ]  # fmt: skip


def more_runs() -> list[Run]:
    """What the pages can do without if time runs out."""
    plan = {"criterion": "random", "ratio": 0.5, "constants": "absorb", "recalibrate": 0}
    return [
        Run("preresnet-normal", "preresnet", "published:normal", "cifar"),
        Run("preresnet-0.5-random", "preresnet", "published:sparse", "cifar", plan),
    ]


def vgg_runs() -> list[Run]:
    """VGG-16 from scratch: full, half and quarter width, pruning with and without sparse training, distillation."""
    settings = {"epochs": 5, "lr": 0.1, "batch_size": 64, "weight_decay": 5e-4, "channels_last": True, "evaluate_every": 0}

    def trained(name: str, start: str, stage: str, **more: Any) -> Run:
        return Run(name, "vgg", start, "fashion", {}, stage, settings | more.pop("settings", {}), **more)

    def pruned(start: str, ratio: float, constants: str, **more: Any) -> Run:
        ending, plan = pruning(ratio, constants, **more)
        return Run(f"{start}-{ending}", "vgg", start, "fashion", plan)

    gentle = {"lr": 0.01, "epochs": 3}
    published = {"alpha": 0.9, "temperature": 10.0}
    return [
        trained("vgg-sparse", "new:VGG:depth=16", "sparse", options={"strength": 5e-3}),
        *(pruned("vgg-sparse", ratio, constants) for ratio in (0.3, 0.7) for constants in ("drop", "absorb")),
        pruned("vgg-sparse", 0.7, "absorb", criterion="random"),
        trained("vgg-sparse-0.7-finetuned", "vgg-sparse-0.7-absorb", "finetune", settings=gentle),
        trained("vgg-sparse-0.7-random-finetuned", "vgg-sparse-0.7-random", "finetune", settings=gentle),
        trained("vgg-quarter", "new:VGG:depth=16,width=0.25", "plain"),
        trained("vgg-half", "new:VGG:depth=16,width=0.5", "plain"),
        trained("vgg-full", "new:VGG:depth=16", "plain"),
        *(pruned("vgg-full", 0.3, constants) for constants in ("drop", "absorb")),
        *(pruned(start, ratio, "absorb", recalibrate=1024, augment=True) for start, ratio in (("vgg-full", 0.3), ("vgg-sparse", 0.3), ("vgg-sparse", 0.7))),
        trained("vgg-quarter-kd", "new:VGG:depth=16,width=0.25", "distill", teacher="vgg-full", options=published),
        *(trained(f"{start}-longer", start, "finetune", settings=gentle) for start in ("vgg-half", "vgg-quarter")),
        *(
            trained(name, "vgg-quarter", "distill", teacher="vgg-half-longer", settings=gentle, options=published | {"temperature": t})
            for name, t in (("vgg-quarter-longer-kd", 10.0), ("vgg-quarter-longer-kd-3", 3.0))
        ),
        trained("vgg-quarter-ten", "vgg-quarter", "finetune", settings=gentle | {"epochs": 10}),
        trained("vgg-quarter-ten-kd", "vgg-quarter", "distill", teacher="vgg-half-longer", settings=gentle | {"epochs": 10}, options=published),
    ]  # fmt: skip


def with_seed(runs: list[Run], seed: int) -> list[Run]:
    """The same runs from another seed, under other names; seed 0 is the runs themselves."""
    if not seed:
        return runs
    names = {run.name for run in runs}

    def other(name: Any) -> Any:
        return f"{name}-seed{seed}" if name in names else name

    return [
        replace(
            run,
            name=other(run.name),
            start=other(run.start),
            teacher=other(run.teacher),
            seed=seed,
            prune={key: other(value) for key, value in run.prune.items()},
        )
        for run in runs
    ]


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
        path = WORK / name / "model.safetensors"
        if not self.done(name) or not path.exists():
            self.run(name)
        return irtool.load(path)

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
        plan = irtool.plan(graph, run.prune["criterion"], ratio, residual=residual, seed=run.seed)
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
            plan = irtool.plan(graph, run.prune["criterion"], hundredths / 100, residual=residual, seed=run.seed)
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
        settings = Settings.settle(Settings(device="cpu", out=folder, resume=True, seed=run.seed), run.settings)
        return STAGES[run.stage](graph.module, self, run, data, settings)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--line", choices=["preresnet", "vgg"], help="only this line")
    parser.add_argument("--only", help="only this run")
    parser.add_argument("--list", action="store_true", help="show the runs, and which are done")
    parser.add_argument(
        "--shared", type=Path, default=ROOT.parent / "shared", help="the folder with data/preresnet38 and data/cifar10-jpeg.zip"
    )
    parser.add_argument("--seed", type=int, default=0, help="of pruning at random, first weights and training; not 0: names end in -seedN")
    options = parser.parse_args()
    torch.set_num_threads(1)
    queue = Queue(with_seed([*preresnet_runs(), *vgg_runs(), *more_runs()], options.seed), options.shared)
    if options.only and options.only not in queue.runs:
        parser.error(f"no run is called {options.only}; --list shows them")
    for name, run in queue.runs.items():
        if options.list:
            print(f"{'done' if queue.done(name) else '    '} {name}")
        elif (options.only in (None, name)) and (options.line in (None, run.line)) and not queue.done(name):
            queue.run(name)


if __name__ == "__main__":
    main()
