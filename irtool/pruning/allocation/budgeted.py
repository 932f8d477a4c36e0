"""From a budget to the groups that go: the costs of a graph, what holds for its layers, and the correction by the exact cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from numbers import Real
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from irtool.analysis.cost import cost
from irtool.analysis.width_cost import WidthCost, width_cost
from irtool.channels.groups import ChannelGroups
from irtool.channels.labels import Layer
from irtool.engines.speed.layer_times import Term
from irtool.errors import DataError, PlanError
from irtool.ir.graph import Graph, Node
from irtool.ops.properties import LAYERS
from irtool.pruning.absorb.contribution import outputs, weight_of
from irtool.pruning.allocation.allocation import Limits
from irtool.pruning.allocation.budget import LATENCY, Targets, costs_of
from irtool.pruning.allocation.greedy import USED, Outcome, allocate, finished
from irtool.pruning.allocation.measured import allocate_measured
from irtool.pruning.allocation.sensitivity import Curve
from irtool.pruning.allocation.stacks import Room, Stack, room_of, stacks_of
from irtool.pruning.allocation.uniform import allocate_uniform
from irtool.pruning.allocation.widths import FINER, finer_steps, steps_of
from irtool.pruning.criteria.criteria import Scores
from irtool.pruning.names import fits
from irtool.pruning.plan import Allocator, Plan, check_choice
from irtool.pruning.slicing.plan_slicing import own_groups, place_of


def check_limits(limits: Any) -> dict[str, float]:
    """Limits as plain data.

    Raises:
        PlanError: one is no fraction from 0 to 1; it is named.
    """
    if not isinstance(limits, Mapping):
        raise PlanError(f"{limits!r} is no table of limits", where="limits", remedy="Give fractions by name, as in {'layer3.*': 0.7}.")
    for name, value in limits.items():
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
            raise PlanError(
                f"{value!r} is no fraction",
                where=f"limits, {name}",
                remedy="Give the largest part of its channels that a layer may lose, 0 to 1.",
            )
    return {str(name): float(value) for name, value in limits.items()}


def check_allocator(allocator: str, budget: Mapping[str, float], scope: str, data: Any) -> None:
    """Refuse an allocation that there is nothing for.

    Raises:
        PlanError: an unknown one, or families are to be measured without a budget, or for equal shares.
        DataError: there are no images to measure on.
    """
    check_choice("allocator", allocator, get_args(Allocator))
    if allocator == "measured" and (not budget or scope != "global"):
        raise PlanError(
            "families are measured for a budget over all layers", where="allocator", remedy="Give a budget, and leave scope out."
        )
    if allocator == "measured" and data is None:
        raise DataError("families are measured on images", where="data", remedy="Give data=images (no labels are needed).")


class SlowError(Exception):
    """No choice of channels leaves as little of the table's time as was aimed at; `least` is the share that can be reached."""

    def __init__(self, least: float) -> None:
        super().__init__(least)
        self.least = least


@dataclass
class Budgeted:
    """Allocation of one plan to its budget.

    Attributes:
        graph: the graph as the user has it, whose costs shares are taken of.
        options: the plan's options.
        notes: what the last allocation has to say.
        terms: the time of the graph that is planned on, by products of axis lengths.
        aim: what may be left of that time, a share of it; None where the budget has no latency.
        reached: the share of it that the last allocation left, and `whole` the milliseconds that it is a share of.
        used: the share of the tightest target that the last allocation uses.
        measure: where families are measured: gives what each of them loses.
        widths: the channels that layers had before an earlier stage took some, by their place in a plan; limits are shares of these.
    """

    graph: Graph
    options: Plan
    notes: tuple[str, ...] = ()
    reached: float = 1.0
    whole: float = 0.0
    used: float = 1.0
    widths: Mapping[tuple[str, int], int] = field(default_factory=dict)
    measure: Callable[[ChannelGroups, list[Stack], Room], list[Curve]] | None = None
    _curves: dict[bytes, list[Curve]] = field(default_factory=dict)
    _offset: dict[str, float] = field(default_factory=dict)
    """Excess of exact counts over the polynomial ones."""
    _expected: dict[str, float] = field(default_factory=dict)

    terms: tuple[Term, ...] = ()
    aim: float | None = None

    @cached_property
    def targets(self) -> Targets:
        """The costs that the budget allows, latency aside."""
        return Targets.of({kind: value for kind, value in self.options.budget.items() if kind != LATENCY}, self.graph)

    def _most(self, costs: WidthCost) -> dict[str, float]:
        """The targets of the next allocation, by the costs that it counts."""
        most = {kind: value - self._offset.get(kind, 0.0) for kind, value in self.targets.most.items()}
        if self.aim is not None:
            self.whole = costs.total(np.array([1.0, *map(len, costs.sets[1:])]))[LATENCY]
            most[LATENCY] = self.aim * self.whole
        return most

    def allocate(self, groups: ChannelGroups, scores: Scores) -> NDArray[np.bool_]:
        """The groups that go, bool, shape (groups,).

        Raises:
            PlanError: no choice keeps to the budget.
        """
        options = self.options
        if self.aim is None and self.targets.hold(costs_of(cost(groups.graph))):
            self.used = 1.0
            return np.zeros(groups.count, bool)  # what nothing is taken from gets no biases, either
        costs = width_cost(groups, biased(groups.graph), self.terms)
        shares, most = self._shares(groups), self._most(costs)
        found, finer = self._in_steps(groups, scores, costs, shares, most)
        self.used = _used(found, most)
        self.notes = (*((FINER.format("the budget"),) if finer > 1 else ()), *self._unused(groups))
        self.reached = found.cost.get(LATENCY, 0.0) / self.whole if self.whole else 1.0
        if not found.reached and found.cost.get(LATENCY, 0.0) > most.get(LATENCY, np.inf):
            raise SlowError(self.reached)
        if not found.reached:
            asked = [name for name in ("ignore", "limits") if getattr(options, name)]
            asked += [name for name in ("min_channels", "round_to") if getattr(options, name) not in (1, "auto")]
            asked += ["groups"] if options.groups == "whole" and groups.whole else []
            hint = f", or loosen {', '.join(asked)}" if asked else ""
            raise self.targets.unreachable(groups, costs, found.remove, found.cost, hint, partial(self._keeping, groups, scores))
        self._expected = found.cost
        return found.remove

    def _in_steps(
        self, groups: ChannelGroups, scores: Scores, costs: WidthCost, shares: dict[int, float], most: dict[str, float]
    ) -> tuple[Outcome, int]:
        """Allocate in the steps that engines like, or in finer ones where those do not reach the budget, or leave more of it unused than `USED`.

        Returns:
            The outcome, and what the steps were divided by. Of those that keep to the budget, the first that uses it, else the one that
            uses most of it.
        """
        options, tried = self.options, list[tuple[float, Outcome, int]]()
        for finer in finer_steps(options.round_to):
            limits = Limits(options.min_channels, steps_of(groups, options.round_to, finer))
            if options.scope == "global":
                room = room_of(groups, costs, limits, shares)
                stacks = stacks_of(groups, scores, room)
                found = self._allocated(groups, stacks, room, costs, most, tried[-1][1] if tried else None)
            else:
                found = allocate_uniform(groups, scores, costs, most, limits, options.scope, shares)
            used = _used(found, most)
            if used >= USED or (found.reached and LATENCY in most):  # time is measured, not counted
                return found, finer
            tried.append((used, found, finer))
        best = max(tried, key=lambda one: one[0])
        return best[1:] if best[0] >= 0 else tried[-1][1:]

    def _unused(self, groups: ChannelGroups) -> tuple[str, ...]:
        """A note where more of the budget is unused than `USED` leaves, with what is too coarse; of counted costs, which time is not."""
        if self.used >= USED or self.aim is not None:
            return ()
        coarse = "whole groups of channels" if groups.whole else "single channels"
        if self.options.round_to not in (1, "auto"):
            coarse = f"steps of round_to={self.options.round_to}"
        return (f"{self.used:.0%} of the budget is used: the smallest next step, in {coarse}, is larger than the rest",)

    def _allocated(
        self, groups: ChannelGroups, stacks: list[Stack], room: Room, costs: WidthCost, most: dict[str, float], coarser: Outcome | None
    ) -> Outcome:
        """By the scores, or by what was measured of each family where that can reach what is asked for.

        Args:
            groups, stacks, room, costs, most: as for `allocate`.
            coarser: what came of coarser steps; families that were measured in these are not measured again.
        """
        if self.measure is None:
            return allocate(stacks, room, costs, most)
        if coarser is not None and coarser.reached:
            gone = [sum(bool(coarser.remove[unit].all()) for unit in stack.units) for stack in stacks]
            return finished(stacks, room, costs, most, gone)
        key = groups.group.tobytes() + room.step.tobytes()
        if key not in self._curves:
            self._curves[key] = self.measure(groups, stacks, room)
        return allocate_measured(stacks, room, costs, most, self._curves[key])

    def _keeping(self, groups: ChannelGroups, scores: Scores, layer: Layer) -> str:
        """Explain why a layer can lose no more, where nothing pins the channels that it keeps."""
        options = self.options
        if np.isnan(scores[own_groups(groups, layer)]).any():
            return f"{options.criterion} has no score here"
        limits = [share for pattern, share in options.limits.items() if fits(layer.node.location, pattern)]
        said = [f"a limit of {min(limits):.0%}"] if limits else []
        said += [f"{name}={value}" for name in ("min_channels", "round_to") if (value := getattr(options, name)) not in (1, "auto")]
        return ", ".join(said) or "the fewest that can stay"

    def keeps(self, graph: Graph, *, whole: bool = False) -> bool:
        """Whether a sliced graph keeps to the budget by its exact cost; if not, the next allocation aims lower.

        Args:
            graph: the sliced graph.
            whole: nothing was taken out of it.
        """
        exact = costs_of(cost(graph))
        room = {} if whole else _room_for_biases(graph)
        left = {kind: exact[kind] + room.get(kind, 0) for kind in self.targets.most}
        if self.targets.hold(left):
            return True
        for kind, value in left.items():
            self._offset[kind] = self._offset.get(kind, 0.0) + max(value - self.targets.most[kind], 0.0)
        return False

    def _shares(self, groups: ChannelGroups) -> dict[int, float]:
        """The limit of each layer that has one, by its number."""
        names = [layer.node.location for layer in groups.layers]
        found: dict[int, float] = {}
        for pattern, share in self.options.limits.items():
            fitting = [number for number, name in enumerate(names) if fits(name, pattern)]
            if not fitting:
                raise PlanError(f"no layer fits {pattern!r}", where="limits", remedy="irtool inspect lists the layers.")
            for number in fitting:
                layer = groups.layers[number]
                size = layer.labels.numel()
                before = self.widths.get(place_of(layer), size)
                left = int(before * share + 1e-9) - (before - size)  # of what it may lose, an earlier stage took some
                found[number] = min(max(left, 0) / size, found.get(number, 1.0))
        return found


def _used(found: Outcome, most: Mapping[str, float]) -> float:
    """The share of the tightest target that an outcome uses; -1 where it does not keep to them."""
    return max((found.cost[kind] / value for kind, value in most.items()), default=1.0) if found.reached else -1.0


def biased(graph: Graph) -> list[Node]:
    """The layers without a bias that would get one if they lost inputs."""
    found, seen = [], set()
    for node in graph.nodes:
        weight = weight_of(node) if node.op in LAYERS else None
        if weight is None or not weight.is_param or node.input.is_param or node.get("bias") is not None or weight in seen:
            continue
        seen.add(weight)
        found.append(node)
    return found


def _room_for_biases(graph: Graph) -> dict[str, int]:
    sizes = [(outputs(node), node.output.dtype.itemsize if node.output.dtype is not None else 4) for node in biased(graph)]
    return {"params": sum(size for size, _ in sizes), "bytes": sum(size * width for size, width in sizes)}
