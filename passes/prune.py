"""Slice a graph as a plan says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from irtool.errors import OptionError
from irtool.garbage import uncollected
from irtool.ir.graph import G
from irtool.passmanager import Pass, PassResult, register
from irtool.pruning.absorb.absorb import Absorption
from irtool.pruning.absorb.bias import add_biases
from irtool.pruning.absorb.calibration import measured
from irtool.pruning.planner import Plan, find_rewrite
from irtool.tensor_defaults import plain_tensors

Constants = Literal["absorb", "drop"]


@register
@dataclass(frozen=True)
class Prune(Pass):
    """Remove the channels of a plan from every tensor that has them. Proven: surviving labels meet as they met before.

    Given:  %conv1 = Conv(%x:1x3x8x8, @conv1.weight:4x3x3x3); %conv2 = Conv(%conv1, @conv2.weight:8x4x3x3)
    Result: %conv1 = Conv(%x:1x3x8x8, @conv1.weight:2x3x3x3); %conv2 = Conv(%conv1, @conv2.weight:8x2x3x3)

    Attributes:
        plan: what goes.
        constants: `"absorb"`: what removed channels add on average moves into the next layer's bias; `"drop"`: they count
            as zero, the published behaviour.
        calibration: batches of inputs to measure those averages on; without them batch norm's statistics tell.
    """

    name: ClassVar[str] = "prune"
    exact: ClassVar[bool] = False

    plan: Plan
    constants: Constants = "absorb"
    calibration: Iterable[Any] | None = None

    def __post_init__(self) -> None:
        if self.constants not in ("absorb", "drop"):
            raise OptionError(f"constants {self.constants!r} does not exist", remedy="Choose absorb or drop.")

    def __call__(self, graph: G) -> PassResult[G]:
        """Slice.

        Raises:
            PlanError: the plan belongs to another model.
            DataError: the calibration batches do not fit the model.
            ProofError: the result could not be proven; nothing is returned.
        """
        with uncollected():
            rewrite = find_rewrite(graph, self.plan)
            new = rewrite.fill()
        labels, keep = rewrite.labels, rewrite.keep
        found = measured(labels, keep, self.calibration) if self.constants == "absorb" else Absorption()
        if found.biases:
            new = add_biases(new, labels, keep, found.biases)
        new.history = (*graph.history, {"step": "prune", "plan": self.plan.to_dict(), "biases": sorted(found.biases)})
        return PassResult(new, self.plan.removed > 0, tuple(_notes(self.plan, rewrite.inexact(), found)))


def _notes(plan: Plan, inexact: list[str], found: Absorption) -> list[str]:
    total = sum(layer.total for layer in plan.layers)
    notes = [f"{plan.removed} of {total} channels removed"]
    if inexact:
        notes.append(f"inexact where channels are mixed: {'; '.join(inexact)}")
    if found.biases:
        notes.append(f"constants absorbed into {len(found.biases)} layers")
    if found.padded:
        notes.append(f"constants are right on average, not at the zero-padded border, in {len(found.padded)} layers")
    if found.averaged:
        notes.append(f"constants differ between positions or calls, and their mean is absorbed, in {', '.join(found.averaged)}")
    if found.unknown:
        notes.append(f"nothing tells the mean of what was removed before {', '.join(found.unknown)}: dropped (calibration data would tell)")
    if found.left:
        notes.append(f"what was removed before {', '.join(found.left)} is dropped: no bias that could take it up")
    return notes


@plain_tensors()
def prune(graph: G, plan: Plan, constants: Constants = "absorb", calibration: Iterable[Any] | None = None) -> G:
    """Slice a graph as a plan says; see `Prune`. The caller's graph is not changed."""
    return Prune(plan, constants, calibration)(graph).graph
