"""Getting a pruned network's accuracy back, as far as a time budget goes: absorb, recalibrate, finetune."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from irtool.errors import OptionError
from irtool.hosts.torch.graph import FxGraph
from irtool.passes import Prune, RecalibrateBatchNorm
from irtool.progress import Progress, silent
from irtool.pruning.planner import Plan
from irtool.tensor_defaults import real_tensors
from irtool.train.data.dataset import Data, balanced
from irtool.train.data.loaders import only_data
from irtool.train.data.split import Part
from irtool.train.distill import FINETUNE, distill, finetune
from irtool.train.evaluate import evaluate
from irtool.train.history import History
from irtool.train.settings import Settings, is_number, is_whole

BATCH = 64
"""Calibration images at a time."""


@dataclass(frozen=True)
class Attempt:
    """One step of a recovery, as it scored on the images held back.

    Attributes:
        name: "drop", "absorb", "recalibrate", "recalibrate, augmented", "finetune" or "distill".
        loss: cross-entropy in nats.
        accuracy: in [0, 1].
        seconds: for the step itself.
        kept: whether its result was better than what was there, and so went on.
    """

    name: str
    loss: float
    accuracy: float
    seconds: float
    kept: bool


@dataclass(frozen=True)
class Recovery:
    """The result of `recover`: the best graph, each step's score, and the training's history if there was time for it."""

    graph: FxGraph
    attempts: tuple[Attempt, ...]
    history: History | None = None


@real_tensors()
def recover(
    graph: FxGraph,
    plan: Plan,
    data: Data,
    *,
    seconds: float = 60.0,
    calibrate: int = 512,
    held_back: int = 512,
    teacher: object | None = None,
    settings: Settings = FINETUNE,
    progress: Progress = silent,
    **changes: Any,
) -> Recovery:
    """Prune by a plan, then take each cheap remedy that helps, and train with the time that is left.

    In order: removed channels dropped, or their constants absorbed (means measured on the calibration images); statistics of
    batch norms estimated anew, on images as in use, then on images cropped and mirrored as `settings` train; finetuning, or
    distillation, for the rest of `seconds`. A step is kept only where it lowers the loss on training images that are held back
    from it (recalibration can do harm). The test split is not read.

    Args:
        graph: the graph that the plan was made for; it is not changed.
        seconds: for everything together. Absorbing and recalibrating are always done; with `seconds=0` nothing else is.
        calibrate: training images for means and statistics.
        held_back: training images that decide.
        teacher: distil from it; None finetunes.
        settings, changes: of the training; `epochs` is an upper bound, the time usually ends it earlier.

    Raises:
        OptionError: a number that can never work.
        IrtoolError: see `Prune`, `fit`.
    """
    data = only_data(data, "Some training images are held back from the rest")
    _check_numbers(seconds, calibrate, held_back, len(data.train))
    end = time.perf_counter() + seconds
    work = _Work(_apart(data, held_back, settings.seed), progress)
    images = work.data.sample(calibrate, settings.seed).split(BATCH)
    work.attempt("drop", lambda: Prune(plan, "drop")(graph).graph)
    work.attempt("absorb", lambda: Prune(plan, "absorb", [(batch,) for batch in images])(graph).graph)
    settings = Settings.merged(settings, {**changes, "evaluate_every": 0})
    augmented = work.data.sample(calibrate, settings.seed, settings.augmentation(data.flip, data.preprocessing.size)).split(BATCH)
    work.attempt("recalibrate", lambda: RecalibrateBatchNorm(images)(work.graph).graph)
    work.attempt("recalibrate, augmented", lambda: RecalibrateBatchNorm(augmented)(work.graph).graph)
    left = end - time.perf_counter()
    if left > 0:
        settings = Settings.merged(settings, {"time_budget": left})
        work.attempt("finetune" if teacher is None else "distill", lambda: work.train(teacher, settings))
    return Recovery(work.graph, tuple(work.attempts), work.history)


def _check_numbers(seconds: float, calibrate: int, held_back: int, images: int) -> None:
    if not is_number(seconds) or seconds < 0 or not is_whole(calibrate, 2) or not is_whole(held_back, 1, images - 1):
        raise OptionError(
            f"seconds {seconds!r}, calibrate {calibrate!r}, held_back {held_back!r} of {images} training images",
            remedy="Give seconds of at least 0, 2 or more images to calibrate, and hold back some, but not all.",
        )


def _apart(data: Data, held_back: int, seed: int) -> Data:
    """The training split cut in two: what to learn from, and as the test split what decides."""
    chosen = balanced(data.train.labels, held_back, seed)
    rest = torch.ones(len(data.train), dtype=torch.bool)
    rest[chosen] = False
    return Data(data.name, Part(data.train, rest.nonzero().squeeze(1)), Part(data.train, chosen), data.flip)


class _Work:
    """The best graph so far, and how it came about."""

    graph: FxGraph

    def __init__(self, data: Data, progress: Progress) -> None:
        self.data, self.progress = data, progress
        self.attempts: list[Attempt] = []
        self.history: History | None = None
        self._loss = float("inf")

    def attempt(self, name: str, step: Any) -> None:
        begun = time.perf_counter()
        made: FxGraph = step()
        seconds = time.perf_counter() - begun
        score = evaluate(made, self.data, progress=self.progress, task=f"score {name}")
        better = not self.attempts or score.loss < self._loss
        self.attempts.append(Attempt(name, score.loss, score.accuracy, seconds, better))
        if better:
            self.graph, self._loss = made, score.loss

    def train(self, teacher: object | None, settings: Settings) -> FxGraph:
        """Train a copy of the best graph."""
        student = self.graph.clone()
        if teacher is None:
            self.history = finetune(student, self.data, settings, progress=self.progress)
        else:
            self.history = distill(student, teacher, self.data, settings, progress=self.progress)
        return student
