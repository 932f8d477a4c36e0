"""The training experiments of bench/experiments.py: their data, and what each starts from, prunes and trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from irtool.train import Data, load_data
from irtool.train.data.split import Part

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
    "fashion-all": Source("Fashion-MNIST at 32x32", str(FASHION_MNIST), 60_000, 5_000, size=32),
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
    """Runs that the pages can do without if time runs out."""
    plan = {"criterion": "random", "ratio": 0.5, "constants": "absorb", "recalibrate": 0}
    return [
        Run("preresnet-normal", "preresnet", "published:normal", "cifar"),
        Run("preresnet-0.5-random", "preresnet", "published:sparse", "cifar", plan),
    ]


def vgg_runs() -> list[Run]:
    """VGG-16 from scratch: full, half and quarter width, pruning with and without sparse training, distillation."""
    settings = {"epochs": 5, "lr": 0.1, "batch_size": 64, "weight_decay": 5e-4, "channels_last": True, "evaluate_every": 0}

    def trained(name: str, start: str, stage: str, source: str = "fashion", **more: Any) -> Run:
        return Run(name, "vgg", start, source, {}, stage, settings | more.pop("settings", {}), **more)

    def pruned(start: str, ratio: float, constants: str, **more: Any) -> Run:
        ending, plan = pruning(ratio, constants, **more)
        return Run(f"{start}-{ending}", "vgg", start, "fashion", plan)

    gentle = {"lr": 0.01, "epochs": 3}
    published = {"alpha": 0.9, "temperature": 10.0}
    quarter, cycle = "new:VGG:depth=16,width=0.25", {"lr": 0.05, "schedule": "one-cycle"}
    return [
        trained("vgg-sparse", "new:VGG:depth=16", "sparse", options={"strength": 5e-3}),
        *(pruned("vgg-sparse", ratio, constants) for ratio in (0.3, 0.7) for constants in ("drop", "absorb")),
        pruned("vgg-sparse", 0.7, "absorb", criterion="random"),
        trained("vgg-sparse-0.7-finetuned", "vgg-sparse-0.7-absorb", "finetune", settings=gentle),
        trained("vgg-sparse-0.7-random-finetuned", "vgg-sparse-0.7-random", "finetune", settings=gentle),
        trained("vgg-quarter", quarter, "plain"),
        trained("vgg-half", "new:VGG:depth=16,width=0.5", "plain"),
        trained("vgg-full", "new:VGG:depth=16", "plain"),
        *(pruned("vgg-full", 0.3, constants) for constants in ("drop", "absorb")),
        *(pruned(start, ratio, "absorb", recalibrate=1024, augment=True) for start, ratio in (("vgg-full", 0.3), ("vgg-sparse", 0.3), ("vgg-sparse", 0.7))),
        trained("vgg-quarter-kd", quarter, "distill", teacher="vgg-full", options=published),
        *(trained(f"{start}-longer", start, "finetune", settings=gentle) for start in ("vgg-half", "vgg-quarter")),
        *(
            trained(name, "vgg-quarter", "distill", teacher="vgg-half-longer", settings=gentle, options=published | {"temperature": t})
            for name, t in (("vgg-quarter-longer-kd", 10.0), ("vgg-quarter-longer-kd-3", 3.0))
        ),
        trained("vgg-quarter-ten", "vgg-quarter", "finetune", settings=gentle | {"epochs": 10}),
        trained("vgg-quarter-ten-kd", "vgg-quarter", "distill", teacher="vgg-half-longer", settings=gentle | {"epochs": 10}, options=published),
        trained("vgg-teacher", "new:VGG:depth=16,width=0.5", "plain", source="fashion-all", settings=cycle | {"epochs": 4}),
        trained("vgg-quarter-taught", "vgg-quarter", "distill", teacher="vgg-teacher", settings=gentle, options=published),
        trained("vgg-quarter-ten-taught", "vgg-quarter", "distill", teacher="vgg-teacher", settings=gentle | {"epochs": 10}, options=published),
        trained("vgg-quarter-cycle", quarter, "plain", settings=cycle | {"epochs": 10}),
        *(
            trained(name, quarter, "distill", teacher="vgg-teacher", settings=cycle | {"epochs": 10}, options=published | {"temperature": t})
            for name, t in (("vgg-quarter-cycle-taught", 10.0), ("vgg-quarter-cycle-taught-3", 3.0))
        ),
    ]  # fmt: skip


def vgg_cifar_runs() -> list[Run]:
    """VGG-16 on CIFAR-10 (JPEG), sparsely trained and pruned at 0.7; the half net is the one that bench/int8_schemes.py quantises."""
    settings = {"epochs": 3, "lr": 0.1, "batch_size": 64, "weight_decay": 5e-4, "channels_last": True, "evaluate_every": 0}

    def pruned(start: str, constants: str, **more: Any) -> Run:
        ending, plan = pruning(0.7, constants, **more)
        return Run(f"{start.removesuffix('-sparse')}-{ending}", "vgg-cifar", start, "cifar", plan)

    def finetuned(start: str) -> Run:
        return Run(f"{start}-finetuned", "vgg-cifar", start, "cifar", {}, "finetune", settings | {"lr": 0.01, "epochs": 2})

    def line(name: str, model: str) -> list[Run]:
        sparse = Run(f"{name}-sparse", "vgg-cifar", model, "cifar", {}, "sparse", settings, {"strength": 2.5e-3})
        return [sparse, *(pruned(sparse.name, constants) for constants in ("drop", "absorb")), finetuned(f"{name}-0.7-absorb")]

    half = line("vgg-cifar-half", "new:VGG:depth=16,width=0.5")
    random = pruned(half[0].name, "absorb", criterion="random")
    return [*line("vgg-cifar", "new:VGG:depth=16"), *half, random, finetuned(random.name)]


def all_runs() -> list[Run]:
    """Every line, in an order in which it can be done."""
    return [*preresnet_runs(), *vgg_runs(), *vgg_cifar_runs(), *more_runs()]


def with_seed(runs: list[Run], seed: int) -> list[Run]:
    """Repeat runs from another seed, under other names; seed 0 is the runs themselves."""
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
