"""From a budget to the groups that go: the costs of a graph, what holds for its layers, and the correction by the exact cost."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irtool.analysis.cost import cost
from irtool.analysis.width_cost import width_cost
from irtool.channels.groups import ChannelGroups
from irtool.errors import PlanError
from irtool.ir.graph import Graph, Node
from irtool.pruning.absorb.bias import takes_bias
from irtool.pruning.absorb.contribution import LAYERS, outputs, weight_of
from irtool.pruning.allocation import Limits
from irtool.pruning.budget import Targets, costs_of
from irtool.pruning.criteria import Scores
from irtool.pruning.greedy import allocate
from irtool.pruning.plan import Plan
from irtool.pruning.stacks import room_of, stacks_of


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


@dataclass
class Budgeted:
    """Allocation of one plan to its budget.

    Attributes:
        graph: the graph as the user has it, whose costs shares are taken of.
        options: the plan's options.
    """

    graph: Graph
    options: Plan
    _offset: dict[str, float] = field(default_factory=dict)
    """What exact counts were above the polynomial ones."""
    _expected: dict[str, float] = field(default_factory=dict)

    @cached_property
    def targets(self) -> Targets:
        """What the budget allows."""
        return Targets.of(self.options.budget, self.graph)

    def allocate(self, groups: ChannelGroups, scores: Scores) -> NDArray[np.bool_]:
        """The groups that go, bool, shape (groups,).

        Raises:
            PlanError: no choice keeps to the budget.
        """
        options = self.options
        costs = width_cost(groups, biased(groups.graph))
        room = room_of(groups, costs, Limits(options.min_channels, options.round_to), self._shares(groups))
        stacks = stacks_of(groups, scores, room)
        most = {kind: value - self._offset.get(kind, 0.0) for kind, value in self.targets.most.items()}
        found = allocate(stacks, room, costs, most, options.round_to)
        if not found.reached:
            asked = [name for name in ("ignore", "limits") if getattr(options, name)]
            asked += [name for name in ("min_channels", "round_to") if getattr(options, name) > 1]
            hint = f", or loosen {', '.join(asked)}" if asked else ""
            raise self.targets.unreachable(groups, costs, found.remove, found.cost, hint)
        self._expected = found.cost
        return found.remove

    def keeps(self, graph: Graph) -> bool:
        """Whether a sliced graph keeps to the budget by its exact cost; if not, the next allocation aims lower."""
        exact = costs_of(cost(graph))
        room = _room_for_biases(graph)
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
            fitting = [number for number, name in enumerate(names) if fnmatch.fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")]
            if not fitting:
                raise PlanError(f"no layer fits {pattern!r}", where="limits", remedy="irtool inspect lists the layers.")
            for number in fitting:
                found[number] = min(share, found.get(number, 1.0))
        return found


def biased(graph: Graph) -> list[Node]:
    """The layers without a bias that would get one if they lost inputs."""
    found, seen = [], set()
    for node in graph.nodes:
        weight = weight_of(node) if node.op in LAYERS else None
        if weight is None or not weight.is_param or node.input.is_param or node.get("bias") is not None or weight in seen:
            continue
        if takes_bias(graph, node):
            seen.add(weight)
            found.append(node)
    return found


def _room_for_biases(graph: Graph) -> dict[str, int]:
    sizes = [(outputs(node), node.output.dtype.itemsize if node.output.dtype is not None else 4) for node in biased(graph)]
    return {"params": sum(size for size, _ in sizes), "bytes": sum(size * width for size, width in sizes)}
