"""The smallest model that loses at most so much: budgets are tried, refitted without labels, trained on where that is not enough.

All choices are made on one half of the test images; the other half is left to tell what came out of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from irtool.errors import OptionError, PlanError
from irtool.hosts.torch.graph import FxGraph
from irtool.progress import Reporter
from irtool.pruning.plan import Plan
from irtool.train import Data, distill
from irtool.train.data.dataset import balanced
from irtool.train.data.split import Part
from irtool.train.distill import FINETUNE
from irtool.train.evaluate import predict
from irtool.train.settings import Settings

Prune = Callable[[Mapping[str, float]], tuple[Plan, FxGraph, tuple[str, ...]]]
"""From a budget to a plan, the refitted graph and the notes on it."""
Measure = Callable[[FxGraph], Mapping[str, float]]
"""Costs of a graph, as shares of the original, by kind."""
BISECTIONS = 4
"""Budgets tried between one that loses too much and one that does not: a sixteenth of the distance is left."""
LEAST = 0.1
"""The smallest share that is tried where no budget is given."""


@dataclass(frozen=True)
class Bound:
    """Limits of what may be lost, and of what may be spent on finding out.

    Attributes:
        max_drop: how much accuracy may be lost, as a share; of images without labels, how many may be answered in another way.
        epochs: of training, at most, for one model.
        minutes: for all training together.
        clock: seconds; tests give their own.
    """

    max_drop: float
    epochs: int = 10
    minutes: float = 15.0
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop < 1:
            raise OptionError(f"{100 * self.max_drop:g} points", where="--max-drop", remedy="Give 0 or more points, below 100.")
        if self.epochs < 0 or self.minutes < 0 or not math.isfinite(self.minutes):
            raise OptionError(
                f"{self.epochs} epochs, {self.minutes:g} minutes", where="--epochs, --minutes", remedy="Give 0 or more; 0 trains nothing."
            )


@dataclass(frozen=True)
class Trial:
    """One model that was tried.

    Attributes:
        budget: what was asked for.
        cost: what it costs, as shares of the original, by kind.
        epochs: trained on; 0: refitted alone.
        drop: the accuracy that it lost on the choosing images, as a share.
        error: the standard error of `drop`.
        holds: whether `drop` and one standard error are within the bound.
        chosen: whether it is the result.
    """

    budget: Mapping[str, float]
    cost: Mapping[str, float]
    epochs: int
    drop: float
    error: float
    holds: bool
    chosen: bool = False


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Attributes:
        graph, plan, notes: of the chosen model.
        trials: in the order in which they were made.
        met: whether the bound holds at the budget that was asked for.
        drop, error: on the images that chose nothing.
        images: how many chose, and how many told.
    """

    graph: FxGraph
    plan: Plan
    notes: tuple[str, ...]
    trials: tuple[Trial, ...]
    met: bool
    drop: float
    error: float
    images: tuple[int, int]


def search(
    graph: FxGraph,
    data: Data,
    prune: Prune,
    measure: Measure,
    bound: Bound,
    budget: Mapping[str, float] | None = None,
    *,
    kind: str = "macs",
    settings: Settings = FINETUNE,
    reporter: Reporter | None = None,
) -> Found:
    """Find the smallest model that holds a bound.

    With a budget, that one is tried first, and is the result if it holds. Else larger ones are, halving the distance; without
    one the search begins at a half, and goes on to where the bound breaks. Each is refitted; one that loses too much is distilled
    from the original on the training images while epochs and minutes last.

    Args:
        graph: the original.
        data: trained on; one half of its test images chooses, the other tells.
        prune, measure: see above.
        bound: what may be lost.
        budget: shares of the original, by kind; None: as small as the bound allows.
        kind: what is made small where there is no budget.
        settings: of the training.
        reporter: is told what is being done.

    Raises:
        OptionError: too few images.
        PlanError: the budget is impossible.
    """
    work = _Work(graph, data, prune, measure, bound, settings, reporter or Reporter())
    asked = dict(budget) if budget else None
    if asked is not None:
        reached = work.try_budget(asked)
        if not reached:
            work.bisect(asked, dict.fromkeys(asked, 1.0))
    else:
        work.descend(kind)
    return work.result(asked)


@dataclass
class _Work:
    """The trials so far, and the models that may become the result."""

    graph: FxGraph
    data: Data
    prune: Prune
    measure: Measure
    bound: Bound
    settings: Settings
    reporter: Reporter
    trials: list[Trial] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.end = self.bound.clock() + 60 * self.bound.minutes
        self.choosing, self.telling = _halves(self.data)
        self.expected = {id(part.test): self._right(self.graph, part) for part in (self.choosing, self.telling)}
        self.models: list[tuple[Plan, FxGraph, tuple[str, ...]]] = []
        self.epoch_seconds = 0.0

    def try_budget(self, budget: Mapping[str, float]) -> bool:
        """Refit a model of that budget, and train it if it loses too much; whether the bound holds in the end."""
        with self.reporter.stage(f"try {_words(budget)}"):
            plan, refitted, notes = self.prune(budget)
            if self._note(budget, plan, refitted, notes, 0):
                return True
        epochs = self._affordable()
        if not epochs:
            return False
        student, begun = refitted.clone(), self.bound.clock()
        changes = {"epochs": epochs, "evaluate_every": 0}
        distill(student, self.graph, self.data, Settings.merged(self.settings, changes), alpha=self._alpha, progress=self.reporter)
        self.epoch_seconds = (self.bound.clock() - begun) / epochs
        trained = f"distilled from the original for {epochs} epochs on {len(self.data.train):,} images"
        return self._note(budget, plan, student, (*notes, trained), epochs)

    def bisect(self, small: Mapping[str, float], large: Mapping[str, float]) -> None:
        """Between a budget that loses too much and one that does not, half of the distance at a time."""
        for _ in range(BISECTIONS):
            middle = {kind: round(math.sqrt(small[kind] * large[kind]), 3) for kind in small}
            if self._holds(middle):
                large = middle
            else:
                small = middle

    def descend(self, kind: str) -> None:
        """From a half down, until the bound breaks; then between the last two."""
        share, held = 0.5, 1.0
        while share >= LEAST and self._holds({kind: share}):
            share, held = share / 2, share
        if share >= LEAST:
            self.bisect({kind: share}, {kind: held})

    def result(self, asked: Mapping[str, float] | None) -> Found:
        """The smallest that holds; where none does, the one that loses least."""
        if not self.trials:
            raise PlanError("no budget can be reached", where="--max-drop", remedy="Give a --budget to see what holds it up.")
        holding = [at for at, trial in enumerate(self.trials) if trial.holds]
        best = min(holding, key=self._size) if holding else self._least_lost()
        plan, graph, notes = self.models[best]
        self.trials[best] = replace(self.trials[best], chosen=True)
        drop, error = self._drop(graph, self.telling)
        met = bool(holding) and (asked is None or dict(self.trials[best].budget) == dict(asked))
        counts = len(self.choosing.test), len(self.telling.test)
        return Found(graph, plan, notes, tuple(self.trials), met, drop, error, counts)

    def _holds(self, budget: Mapping[str, float]) -> bool:
        try:
            return self.try_budget(budget)
        except PlanError:
            return False  # pins leave no model so small

    def _size(self, at: int) -> float:
        trial = self.trials[at]
        return max(trial.cost[kind] for kind in trial.budget)

    def _least_lost(self) -> int:
        return min(range(len(self.trials)), key=lambda at: self.trials[at].drop)

    def _affordable(self) -> int:
        """Epochs that the time left allows, if half of it is kept for other budgets; one at least while there is time."""
        left = self.end - self.bound.clock()
        if left <= 0 or not self.bound.epochs:
            return 0
        if not self.epoch_seconds:
            return self.bound.epochs if self.bound.epochs == 1 else max(1, self.bound.epochs // 2)
        return max(1, min(self.bound.epochs, int(left / 2 / self.epoch_seconds)))

    @property
    def _alpha(self) -> float:
        """Weight of the teacher: all of it where labels are its own answers."""
        return 0.9 if self.data.truth == "labels" else 1.0

    def _note(self, budget: Mapping[str, float], plan: Plan, graph: FxGraph, notes: tuple[str, ...], epochs: int) -> bool:
        drop, error = self._drop(graph, self.choosing)
        holds = drop + error <= self.bound.max_drop or drop <= 0
        self.trials.append(Trial(dict(budget), self.measure(graph), epochs, drop, error, holds))
        self.models.append((plan, graph, notes))
        return holds

    def _drop(self, graph: FxGraph, part: Data) -> tuple[float, float]:
        """Accuracy lost against the original on the same images, and its standard error (of a mean of paired differences)."""
        lost = (self.expected[id(part.test)].float() - self._right(graph, part).float()).double()
        return float(lost.mean()), float(lost.std(correction=1) / math.sqrt(len(lost)))

    def _right(self, graph: FxGraph, part: Data) -> Tensor:
        labels = torch.as_tensor(part.test.labels)
        return predict(graph, part.test, progress=self.reporter, task="score").argmax(1).cpu() == labels


def _halves(data: Data) -> tuple[Data, Data]:
    """The test images cut in two, each class alike."""
    count = len(data.test)
    if count < 4:
        raise OptionError(f"{count} test images", where="--max-drop", remedy="Give at least 4; hundreds tell points apart.")
    first = balanced(torch.as_tensor(data.test.labels), count // 2, 0)
    rest = torch.ones(count, dtype=torch.bool)
    rest[first] = False
    parts = (Part(data.test, first), Part(data.test, rest.nonzero().squeeze(1)))
    return tuple(replace(data, test=part) for part in parts)  # type: ignore[return-value]


def _words(budget: Mapping[str, float]) -> str:
    return ", ".join(f"{kind} {100 * share:.3g} %" if share <= 1 else f"{kind} {share:,.0f}" for kind, share in budget.items())


def pareto(trials: Sequence[Trial], kind: str) -> list[Trial]:
    """The trials that no other beats in both cost and accuracy, the smallest first."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda trial: (trial.cost[kind], trial.drop)):
        if not front or trial.drop < front[-1].drop:
            front.append(trial)
    return front


def plain(found: Found, bound: Bound) -> dict[str, Any]:
    """All of it but the models, as JSON data."""
    return {
        "max_drop": bound.max_drop,
        "met": found.met,
        "drop": found.drop,
        "error": found.error,
        "images": {"choose": found.images[0], "tell": found.images[1]},
        "trials": [vars(trial) for trial in found.trials],
    }
