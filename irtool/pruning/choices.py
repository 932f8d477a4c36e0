"""Choices between ways to plan, made by trial: each way's plan is carried out and refitted on some of the images, and what its outputs
lack against the original's is measured on others.

Losses that scores expect do not tell: refitting makes up for most of what one way loses and for little of another's.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from irtool.analysis.cost import cost
from irtool.errors import DataError, PlanError
from irtool.ir.frontier import Batch
from irtool.ir.graph import Graph
from irtool.progress import Progress, Status, silent
from irtool.pruning.absorb.bias import add_to_biases
from irtool.pruning.branches import Branch, branches, chosen_branches, cut, mean_outputs, set_constants
from irtool.pruning.names import fits, is_at
from irtool.pruning.plan import Plan, Residual, check_names
from irtool.pruning.reconstruct.distance import Aims
from irtool.pruning.reconstruct.images import image_batches, size_of, split_to_fit
from irtool.pruning.reconstruct.reconstruct import Reconstruction
from irtool.pruning.slicing.plan_slicing import Planned, put_constants

SHOWN, HELD, LEAST = 128, 256, 32
"""Images that a trial scores channels and refits layers on, and images that it is measured on, at most; both together, at least."""
_WORK = 6e11
"""Multiply-accumulates that all these images may take in one run of the original."""
CHUNK = 32
"""Images that are run together."""
_WAYS: tuple[Residual, ...] = ("couple", "select")
"""Treatments of residual streams that are tried. To keep them is left out: whatever may go then may go with selections, too."""
_PATIENCE = 2
"""So many branches more are tried after one that gained nothing, which stays."""


@dataclass
class Choice:
    """Ways to plan one graph, and what came of each.

    Args:
        graph: the graph as the user has it.
        shown, held: batches that trials plan and refit on, and that they are measured on.
        solve: makes a plan of options on batches.
        progress: told about each trial.
    """

    graph: Graph
    shown: Sequence[Batch]
    held: Sequence[Batch]
    solve: Callable[[Plan, Sequence[Batch]], Planned[Graph]]
    progress: Progress = silent
    tried: list[tuple[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._aims = Aims.of(self.graph, self.held)

    @classmethod
    def on(cls, graph: Graph, data: Any, solve: Callable[[Plan, Sequence[Batch]], Planned[Graph]], progress: Progress) -> Choice | None:
        """That of a graph on images, fewer where it computes much; None where they are too few to tell anything."""
        macs = max(cost(graph).macs, 1)
        most = int(min(max(_WORK / macs, LEAST), SHOWN + HELD))
        images = image_batches(graph, data, sys.maxsize, CHUNK)
        count = sum(map(size_of, images))
        if count < LEAST:
            return None
        size = min(CHUNK, min(count, most) // 3)
        found = image_batches(graph, images, sys.maxsize, size)
        # Batches from all over: images may come class by class.
        taken = np.linspace(0, len(found) - 1, min(most // size, len(found))).round().astype(int)
        shown, held = ([found[place] for number, place in enumerate(taken) if (number % 3 == 0) is first] for first in (True, False))
        return cls(graph, split_to_fit(graph, shown), split_to_fit(graph, held), solve, progress)

    def of(self, options: Plan, *, streams: bool, depth: bool) -> Plan:
        """The options that lose least.

        Args:
            options: the plan's, without layers.
            streams: whether `residual` is open.
            depth: whether branches may go.
        """
        best, least = options, math.inf
        for residual in _WAYS if streams and _has_streams(self.graph) else ():
            found = dataclasses.replace(options, residual=residual)
            lost = self.distance(found, f"residual {residual}")
            best, least = (found, lost) if lost < least else (best, least)
        return self._shallower(best, least) if depth else best

    def _shallower(self, options: Plan, least: float) -> Plan:
        """Take out one branch after the other where that gains, in the order of what each alone costs for what it saves."""
        order = self._ranked(options)
        if order and least == math.inf:
            least = self.distance(options, "every branch")
        best, misses, known = options, 0, {branch.name: branch for branch in order}
        for branch in order:
            if misses > _PATIENCE:
                break
            if any(known[name].addition == branch.addition or branch.name in known[name].nodes for name in best.branches):
                continue  # its addition has nothing else left, or it went with another one
            found = dataclasses.replace(options, branches=(*best.branches, branch.name))
            lost = self.distance(found, f"without {', '.join(found.branches)}")
            misses = 0 if lost < least else misses + 1
            best, least = (found, lost) if lost < least else (best, least)
        return best

    def _ranked(self, options: Plan) -> list[Branch]:
        """The branches that may go, by what the outputs lack without each alone for every multiply-accumulate that it saves."""
        found = [branch for branch in branches(self.graph) if not _held_by(branch, options)]
        means = mean_outputs(self.graph, found, self.shown)
        rank = {}
        for branch in found:
            left = cut(self.graph, [branch.name])
            set_constants(left, [branch], means)
            rank[branch.name] = self._aims.distance(left) / max(branch.macs, 1)
        return sorted(found, key=lambda branch: rank[branch.name])

    def distance(self, options: Plan, name: str) -> float:
        """Measure what the outputs lack on the images held back once the plan is carried out and refitted; infinite where there is no plan."""
        self.progress(Status(f"try {name}", len(self.tried), len(self.tried) + 1))
        try:
            planned = self.solve(dataclasses.replace(options, stages=1), self.shown)
        except PlanError:
            return math.inf
        slicing = planned.slicing
        put_constants(slicing, planned.plan, self.shown)
        new = slicing.fill()
        gains = Reconstruction([slicing], new, self.shown).run().gains
        lost = self._aims.distance(add_to_biases(new, gains) if gains else new)
        self.tried.append((name, lost))
        return lost

    @property
    def notes(self) -> tuple[str, ...]:
        """A line about what was tried."""
        if not self.tried:
            return ()
        listed = ", ".join(f"{name} {lost:.3g}" for name, lost in self.tried)
        return (f"tried, by what the refitted outputs lack on images held back: {listed}",)


def _has_streams(graph: Graph) -> bool:
    """Whether an addition joins two values that are computed."""
    return any(node.op == "Add" and sum(not value.is_param for value in node.inputs) > 1 for node in graph.nodes)


def _held_by(branch: Branch, options: Plan) -> bool:
    """Whether a layer of the branch is to stay: ignored, or with a limit to what it may lose."""
    inside = (*branch.layers, *branch.nodes)
    ignored = any(is_at(part, name) for name in options.ignore for part in inside)
    return ignored or any(fits(part, pattern) for pattern in options.limits for part in inside)


def check_depth(graph: Graph, depth: bool | Sequence[str], options: Plan, data: Any) -> tuple[str, ...]:
    """The branches that `depth` names.

    Raises:
        PlanError: there are none of these names, one is to stay, or there is no budget that they could be chosen for.
        DataError: there are no images to choose by.
    """
    if isinstance(depth, bool):
        if depth and not options.budget:
            raise PlanError(
                "branches are chosen for a budget, and there is none", where="depth", remedy="Give a budget, or name the branches."
            )
        if depth and data is None:
            raise DataError("branches are chosen on images", where="data", remedy="Give data=images (no labels are needed).")
        return ()
    names = check_names("depth", depth)
    for branch in chosen_branches(graph, names):
        if _held_by(branch, options):
            raise PlanError("is to go, and to stay", where=branch.name, remedy="Take it out of depth, or out of ignore and limits.")
    return names
