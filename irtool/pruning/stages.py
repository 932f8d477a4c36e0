"""Planning in stages: prune a part of the way, refit what is left, and score its channels again.

Scores are of the net as it is. Once half of the channels are gone and the others make up for them, others matter. The steps are
equal as ratios of the cost, and of every stage the plan of the original that leads there is known, so that the result is one plan.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from irtool.errors import DataError, PlanError
from irtool.ir.graph import Graph
from irtool.pruning.absorb.bias import add_to_biases
from irtool.pruning.allocation.budget import Targets
from irtool.pruning.plan import LayerPlan, Plan
from irtool.pruning.reconstruct.images import image_batches, split_to_fit
from irtool.pruning.reconstruct.reconstruct import Reconstruction
from irtool.pruning.slicing.plan_slicing import Planned, find_slicing, put_constants
from irtool.pruning.slicing.slicing import Slicing

CHUNK = 32
"""Images that are run together while layers are refitted."""
IMAGES = 512
"""Refitted on between stages."""
MOST = 20
"""Stages of a plan: each takes as long as planning does without them."""
Place = tuple[str, int]


@dataclass(frozen=True)
class Stage:
    """One step of the way.

    Attributes:
        graph: what is left after those before.
        options: the options of its plan, with the budget that is to hold after it.
        widths: how many channels layers have in the original, by their place in a plan.
    """

    graph: Graph
    options: Plan
    widths: Mapping[Place, int]


def check_stages(stages: Any, budget: Mapping[str, float], data: Any) -> None:
    """Refuse a number of stages that cannot be gone.

    Raises:
        PlanError: it is no number, or there is no budget to come nearer to.
        DataError: there are no images to refit on.
    """
    if not isinstance(stages, Integral) or isinstance(stages, bool) or not 1 <= int(stages) <= MOST:
        remedy = f"Give 1 to {MOST}: each is a planning and a refitting of its own, and more than three hardly gain."
        raise PlanError(f"{stages!r} is no number of stages", where="stages", remedy=remedy)
    if int(stages) > 1 and not budget:
        raise PlanError(
            "stages lead to a budget, and there is none", where="stages", remedy="Give budget={'macs': 0.5}, or leave stages out."
        )
    if int(stages) > 1 and data is None:
        raise DataError("between stages layers are refitted on images", where="data", remedy="Give data=images (no labels are needed).")


def in_stages(graph: Graph, options: Plan, data: Any, solve: Callable[[Stage], Planned[Graph]]) -> Planned[Graph]:
    """Plan step by step.

    Args:
        graph: the graph as the user has it.
        options: of the whole plan, without layers.
        data: images to refit on.
        solve: plans one stage.

    Returns:
        A plan of `graph`, and its slicing.
    """
    targets = Targets.of(options.budget, graph)
    batches = split_to_fit(graph, image_batches(graph, data, IMAGES, CHUNK))
    current, slicings, done = graph, list[Slicing[Any]](), Plan(())
    for number in range(1, options.stages + 1):
        part = number / options.stages
        wholes = {kind: max(targets.original[kind], 1) for kind in targets.most}  # of a graph without layers there is nothing
        budget = {kind: max(whole * (targets.most[kind] / whole) ** part, 1.5) for kind, whole in wholes.items()}
        widths = {(layer.parameter, layer.axis): layer.total for layer in done.layers}
        cuts = options.branches if number == 1 else ()
        planned = solve(Stage(current, dataclasses.replace(options, budget=budget, branches=cuts), widths))
        found = planned.plan
        done = found if number == 1 else dataclasses.replace(done, layers=tuple(_joined(done, found)))
        if number < options.stages:
            slicings.append(planned.slicing)
            put_constants(slicings[-1], found, batches)
            current = _refitted(slicings, batches)
    total = sum(layer.total for layer in done.layers)
    made = dataclasses.replace(options, layers=done.layers, notes=found.notes, ratio=done.removed / max(total, 1))
    return Planned(made, find_slicing(graph, made))


def _refitted(slicings: list[Slicing[Any]], batches: list[Any]) -> Graph:
    """The graph that the last of these slicings leads to, refitted to the original."""
    new: Graph = slicings[-1].fill()
    gains = Reconstruction(slicings, new, batches).run().gains
    return add_to_biases(new, gains) if gains else new


def _joined(before: Plan, then: Plan) -> list[LayerPlan]:
    """Join two plans that follow each other: all that is removed, in positions of the first one's graph."""
    later = {(layer.parameter, layer.axis): layer for layer in then.layers}
    found = []
    for layer in before.layers:
        gone = set(layer.removed)
        kept = [place for place in range(layer.total) if place not in gone]
        entry = later.get((layer.parameter, layer.axis))
        if entry is None or entry.total != len(kept):
            what = "is not found again after a stage"
            raise PlanError(f"its layer {what}", where=layer.name, remedy="Plan with stages=1, and please report this model.")
        removed = (*layer.removed, *(kept[place] for place in entry.removed))
        found.append(dataclasses.replace(layer, removed=tuple(sorted(removed)), reason=entry.reason or layer.reason))
    return found
