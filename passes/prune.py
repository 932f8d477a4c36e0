"""Slice a graph as a plan says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal

from irtool.errors import OptionError
from irtool.garbage import uncollected
from irtool.ir.graph import G
from irtool.passmanager import Pass, Rewritten, register
from irtool.pruning.absorb.absorb import Absorption
from irtool.pruning.absorb.bias import add_biases, no_gains
from irtool.pruning.absorb.calibration import constants_of_branches, listed, measured
from irtool.pruning.plan import Plan
from irtool.pruning.slicing.check import MaskedCheck, check_prune
from irtool.pruning.slicing.plan_slicing import find_slicing

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

    def rewrite(self, graph: G) -> Rewritten[G]:
        """Slice.

        Raises:
            PlanError: the plan belongs to another model.
            DataError: the calibration batches do not fit the model.
            ProofError: the result could not be proven; nothing is returned.
        """
        with uncollected():
            slicing = find_slicing(graph, self.plan)
            unknown = constants_of_branches(slicing, self.plan, self.calibration, drop=self.constants == "drop")
            new = slicing.fill()
            guarded = new.notes
        labels, keep = slicing.labels, slicing.keep
        found = measured(labels, keep, self.calibration) if self.constants == "absorb" else Absorption()
        if found.biases:
            new = add_biases(new, labels, keep, found.biases)
            new.notes = guarded
        record = {"plan": self.plan.to_dict(), "biases": sorted(found.biases)}
        notes = _notes(self.plan, slicing.inexact(), found)
        notes += [f"nothing tells the mean of what {name} added: dropped (calibration data would tell)" for name in unknown]
        return Rewritten(new, [*notes, *(note for note in guarded if note not in graph.notes)], record)

    def options(self) -> dict[str, Any]:
        """The plan is recorded with the biases that it led to; where these came from does not matter when it is repeated."""
        return {}

    @classmethod
    def replay(cls, graph: G, step: Mapping[str, Any]) -> G:
        """Slice; layers that took up constants when the plan was carried out get biases to load into."""
        slicing = find_slicing(graph, Plan.from_dict(step["plan"]))
        labels, keep = slicing.labels, slicing.keep
        zeros = no_gains(labels, step["biases"])
        new = slicing.fill()
        return add_biases(new, labels, keep, zeros) if zeros else new


def _notes(plan: Plan, inexact: list[str], found: Absorption) -> list[str]:
    total = sum(layer.total for layer in plan.layers)
    notes = [f"{plan.removed} of {total} channels removed"]
    notes += [f"taken out as a whole: {', '.join(plan.branches)}"] if plan.branches else []
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


@dataclass(frozen=True)
class Rewrite(Generic[G]):
    """A plan, carried out and proven.

    Attributes:
        graph: the pruned graph.
        plan: the channels that went.
        notes: what was done, left alone or only approximate, a line each.
        original: the graph that was pruned.
        constants, calibration: how the constants of removed channels were treated, as for `prune`.
    """

    graph: G
    plan: Plan
    notes: tuple[str, ...]
    original: G = field(repr=False)
    constants: Constants = "absorb"
    calibration: Sequence[Any] | None = field(default=None, repr=False)

    def check(self, inputs: tuple[Any, ...] | None = None, seed: int = 0) -> MaskedCheck:
        """Compare with the original whose removed channels are masked, in numbers; see `check_prune`. Nothing is proven again."""
        return check_prune(self.original, self.plan, inputs, self.constants, self.calibration, seed)


def rewrite(graph: G, plan: Plan, constants: Constants = "absorb", calibration: Iterable[Any] | None = None) -> Rewrite[G]:
    """Slice a graph as a plan says, and say what was done; see `Prune`. The caller's graph is not changed.

    What `plan` has proven, or an earlier call, is not proven again, as long as the plan and the graph are there: each call gives a
    graph of its own.
    """
    batches = None if calibration is None else list(listed(calibration))
    done = Prune(plan, constants, batches)(graph)
    return Rewrite(done.graph, plan, done.notes, graph, constants, batches)


def prune(graph: G, plan: Plan, constants: Constants = "absorb", calibration: Iterable[Any] | None = None) -> G:
    """Slice a graph as a plan says; see `Prune`. The caller's graph is not changed. `rewrite` tells more."""
    return Prune(plan, constants, calibration)(graph).graph
