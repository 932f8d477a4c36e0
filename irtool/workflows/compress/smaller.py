"""From a graph to a smaller one: what is planned, pruned, refitted and, where a bound asks for it, trained."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Generic, cast

import torch
from torch import Tensor

import irtool
from irtool.analysis.cost import cost
from irtool.engines.speed.whole_graph import GraphClock
from irtool.errors import OptionError
from irtool.hosts.torch.graph import FxGraph
from irtool.ir.graph import G, Graph
from irtool.passes import Prune, Reconstruct, fold_batchnorm
from irtool.passmanager import PassResult
from irtool.progress import Reporter
from irtool.pruning import CRITERIA, Plan
from irtool.pruning.allocation.budget import LATENCY, costs_of
from irtool.pruning.criteria.batches import default_criterion
from irtool.pruning.reconstruct.distance import Aims
from irtool.pruning.reconstruct.stand_in import can_stand_in
from irtool.train import Data
from irtool.train.data.dataset import balanced
from irtool.train.data.split import Part
from irtool.workflows.compress.gains import HELD_BACK, better, distilled_on, stages_of
from irtool.workflows.compress.search import Found, search
from irtool.workflows.compress.settings import Settings
from irtool.workflows.equality.chain_inputs import fitting_inputs

SEEN = 512
"""Training images that a criterion looks at unless told otherwise."""
FOLLOWED = 8192
"""Training images that a refitted net follows its original on, where they fit into memory: fewer gain less (ADR 17)."""
FOLLOWED_BYTES = 1 << 30
"""Bytes that these images may take."""


@dataclass(frozen=True)
class Smaller(Generic[G]):
    """The plan, and the model that came of it.

    Attributes:
        plan: what goes.
        sliced: the smaller graph, with the notes on it.
        calibration: the images that means were measured on, or layers refitted.
        found: what was tried, where a bound was given.
    """

    plan: Plan
    sliced: PassResult[G]
    calibration: list[tuple[Tensor]] | None = None
    found: Found | None = None


def smaller(graph: G, data: Data | None, settings: Settings, reporter: Reporter) -> Smaller[G]:
    """Plan and slice: once as asked for, or over and over until what is lost is within the bound.

    Raises:
        OptionError: a bound without images, or on an ONNX file.
        IrtoolError: a step cannot be taken.
    """
    maker = _Maker(graph, data, settings, reporter)
    if settings.bound is None:
        return Smaller(*maker.make({}), maker.calibration)
    if data is None or not graph.trainable:
        raise OptionError(
            "a bound on what is lost", where="--max-drop", remedy="Give --data, and the PyTorch model: it may have to be trained."
        )
    if data.truth == "none":
        raise OptionError("the outputs are no scores of classes", where="--max-drop", remedy="Leave it out, and compare outputs yourself.")
    engine = settings.plan.get("engine")
    with GraphClock(graph, engine, settings.threads) if engine else nullcontext() as clock:
        found = search(
            cast(FxGraph, graph),
            data,
            lambda budget: _unpacked(*maker.make({"budget": budget})),
            lambda small: shares(small, graph, clock),
            settings.bound,
            as_shares(settings.plan.get("budget"), graph, clock),
            kind=LATENCY if engine else "macs",
            reporter=reporter,
        )
    return Smaller(found.plan, PassResult(cast(G, found.graph), True, found.notes), maker.calibration, found)


class _Maker(Generic[G]):
    """Makes smaller graphs of one graph, for one budget after the other."""

    def __init__(self, graph: G, data: Data | None, settings: Settings, reporter: Reporter) -> None:
        self._graph, self._settings, self._reporter = graph, settings, reporter
        self._stages = stages_of(graph, settings, SEEN if data is not None else 0)
        self._measured: Tensor | None = None
        shown = data
        if data is not None and self._stages > 1 and graph.trainable:
            self._measured, shown = _apart(data)
        self.calibration = calibration_batches(graph, shown, settings.reconstruct or settings.calibrate)
        self._scored = _scored(graph, shown, settings)
        self._times, count = distilled_on(graph, settings, FOLLOWED)
        self._followed = _followed(graph, shown, count)
        self._settled: dict[str, Any] = {}
        """Wishes about residual streams: tried once, and holds for all budgets of a search."""

    def make(self, wish: Mapping[str, Any]) -> tuple[Plan, PassResult[G]]:
        """Plan and prune, with other options of `plan` than the settings have; in stages where these gain something."""
        if self._measured is None or not {**self._settings.plan, **wish}.get("budget"):
            plan = self._planned(wish, self._stages)
            return plan, self._pruned(plan, self._times)
        held = Aims.of(self._graph, _batches(self._graph, self._measured))
        tried = [(plan, self._pruned(plan)) for plan in (self._planned(wish, 1), self._planned(wish, self._stages))]
        kept = better(held, f"planning in {self._stages} stages", tried[0], tried[1], lambda made: made[1].graph)
        plan, done = kept.result
        done = self._pruned(plan, self._times) if self._times else done
        return plan, replace(done, notes=(kept.note, *done.notes))

    def _planned(self, wish: Mapping[str, Any], stages: int) -> Plan:
        if self._settings.given is not None:
            return self._settings.given
        options = {**self._settings.plan, **self._scored, **wish, **self._settled, "stages": stages, "progress": self._reporter}
        with self._reporter.stage("plan" if stages == 1 else f"plan in {stages} stages"):
            plan = irtool.plan(self._graph, **options)
        self._settled["residual"] = plan.residual
        return plan

    def _pruned(self, plan: Plan, distil: int = 0) -> PassResult[G]:
        settings = self._settings
        with self._reporter.stage("prune"):
            if settings.reconstruct or (settings.noise and can_stand_in(self._graph)):
                images = None if self.calibration is None else [*self.calibration, *(self._followed if distil else [])]
                limit = settings.reconstruct if images else SEEN
                return Reconstruct(plan, images, limit=limit, distil=distil, progress=self._reporter)(self._graph)
            return Prune(plan, settings.constants, self.calibration)(self._graph)


def _unpacked(plan: Plan, done: PassResult[Any]) -> tuple[Plan, FxGraph, tuple[str, ...]]:
    return plan, done.graph, done.notes


def shares(graph: FxGraph, original: Graph, clock: GraphClock | None = None) -> dict[str, float]:
    """Compute what a graph costs, as shares of the original's: by macs, params and bytes, and with a clock by latency."""
    small, whole = costs_of(cost(graph)), costs_of(cost(original))
    found = {kind: small[kind] / max(whole[kind], 1) for kind in small}
    return found if clock is None else found | {LATENCY: clock.compared(fold_batchnorm(graph)).ratios[1]}


def as_shares(budget: Mapping[str, float] | None, graph: Graph, clock: GraphClock | None = None) -> dict[str, float] | None:
    """A budget whose absolute numbers are shares of what the graph costs."""
    if not budget:
        return None
    whole: dict[str, float] = {**costs_of(cost(graph))}
    if clock is not None and budget.get(LATENCY, 0) > 1:
        whole[LATENCY] = clock.alone()
    return {kind: value if value <= 1 else min(1.0, value / max(whole[kind], 1e-9)) for kind, value in budget.items()}


def _scored(graph: Graph, data: Data | None, settings: Settings) -> dict[str, Any]:
    """The criterion, and the images that it looks at if it does; nothing where planning decides without images, or is done."""
    if settings.given is not None:
        return {}
    name = settings.plan.get("criterion")
    if name is None:
        wished = settings.plan.get("budget") is not None or settings.bound is not None
        if data is None and wished:
            return {}
        name = default_criterion(graph, data if wished else None)
    chooses = bool(settings.plan.get("depth")) or settings.plan.get("allocator") == "measured"
    if CRITERIA[name].reads == "parameters" and not chooses:
        return {"criterion": name}
    if data is None:
        raise OptionError(f"{name} looks at images, and no --data", where="--criterion", remedy="Give --data too, or choose l1.")
    return {"criterion": name, "data": calibration_batches(graph, data, settings.calibrate or SEEN)}


def _followed(graph: Graph, data: Data | None, count: int) -> list[tuple[Tensor]]:
    """More images to distil on, in an order that does not go by classes: whole batches are held back.

    Raises:
        OptionError: the graph has no gradients.
    """
    if data is None or not count:
        return []
    if not graph.trainable:
        raise OptionError("an ONNX file is not trained", where="--distil", remedy="Leave it out, or give the PyTorch model.")
    one = data.sample(1)
    images = data.sample(max(1, min(count, FOLLOWED_BYTES // (one.numel() * one.element_size()))), seed=1)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return _batches(graph, images[order])


def _apart(data: Data) -> tuple[Tensor, Data]:
    """Training images that tell what a stage gained, and the dataset without them."""
    held = balanced(data.train.labels, max(1, min(HELD_BACK, len(data.train) // 5)), seed=2)
    rest = torch.ones(len(data.train), dtype=torch.bool)
    rest[held] = False
    measured = data.preprocessing.normalise(next(iter(data.train.batches([held]))))
    return measured, replace(data, train=Part(data.train, rest.nonzero()[:, 0]))


def calibration_batches(graph: Graph, data: Data | None, count: int) -> list[tuple[Tensor]] | None:
    """Training images to measure means on, in batches that the graph takes; None if none are asked for."""
    if data is None or not count:
        return None
    return _batches(graph, data.sample(count))


def _batches(graph: Graph, images: Tensor) -> list[tuple[Tensor]]:
    own = len(graph.example_inputs[0])
    some = images[: own + 1]  # thousands need not run at once to see that the batch is free
    step = len(images) if fitting_inputs(graph, (some,))[0] is some else own
    return [(batch,) for batch in images.split(step) if len(batch) == step]
