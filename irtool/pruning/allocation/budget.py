"""Budgets: what may be left of a cost, as a share of the original or a number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irtool.analysis.cost import Cost, cost
from irtool.analysis.width_cost import KINDS, WidthCost
from irtool.channels.groups import ChannelGroups
from irtool.channels.labels import Layer
from irtool.engines.table import ENGINES
from irtool.engines.table import engine as find_engine
from irtool.errors import PlanError
from irtool.ir.graph import Graph

LATENCY = "latency"
"""Milliseconds, where it is no share."""
EXCESS = 1e-6
"""Costs are whole numbers; their shares of an original are not."""


def check_budget(budget: Any) -> dict[str, float]:
    """A budget as plain data: for each of `macs`, `params`, `bytes`, `latency` a share of the original (at most 1) or a number.

    Raises:
        PlanError: a key or value is impossible; it is named.
    """
    if not isinstance(budget, Mapping) or not budget:
        raise PlanError(f"{budget!r} is no budget", where="budget", remedy="Give shares or numbers by kind, as in {'macs': 0.5}.")
    for kind, value in budget.items():
        if kind not in (*KINDS, LATENCY):
            raise PlanError(f"budget {kind!r} does not exist", remedy=f"Choose among {', '.join((*KINDS, LATENCY))}.")
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < np.inf:
            remedy = "Give a share of the original of at most 1, as 0.5 for half, or a number above 1."
            raise PlanError(f"{value!r} is no budget", where=kind, remedy=remedy)
    return {kind: float(value) for kind, value in budget.items()}


def check_engine_request(budget: Mapping[str, float], engine: str | None, threads: int) -> None:
    """Refuse a latency budget without an engine to measure it in, and an engine without a latency budget.

    Raises:
        PlanError: one is there without the other, or `threads` is less than 1.
        OptionError: the engine does not exist.
    """
    if LATENCY in budget and engine is None:
        raise PlanError("a latency budget needs an engine to measure in", where="engine", remedy=f"Give one of {', '.join(ENGINES)}.")
    if LATENCY not in budget and engine is not None:
        raise PlanError("an engine is for latency budgets", where="engine", remedy="Ask for latency in the budget, or leave engine out.")
    if engine is not None:
        find_engine(engine)
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise PlanError(f"{threads!r} threads", where="threads", remedy="Give 1 or more.")


def costs_of(found: Cost) -> dict[str, int]:
    """The costs that a budget speaks of."""
    return {"macs": found.macs, "params": found.params, "bytes": found.weight_bytes}


@dataclass(frozen=True)
class Targets:
    """The costs that a budget allows for one graph.

    Attributes:
        most: by kind, the largest cost allowed.
        original: by kind, the cost of the graph as it is.
    """

    most: dict[str, float]
    original: dict[str, float]

    @classmethod
    def of(cls, budget: Mapping[str, float], graph: Graph, latency: float = 0.0) -> Targets:
        """Those of a graph. A value of at most 1 is a share of what the graph costs; `latency` is its milliseconds by the table."""
        original: dict[str, float] = {**costs_of(cost(graph)), LATENCY: latency}
        return cls({kind: value * original[kind] if value <= 1 else value for kind, value in budget.items()}, original)

    def hold(self, left: Mapping[str, float]) -> bool:
        """Whether costs keep to them, as far as they are known."""
        return all(left[kind] <= most + EXCESS for kind, most in self.most.items() if kind in left)

    def unreachable(
        self, groups: ChannelGroups, costs: WidthCost, remove: NDArray[np.bool_], least: Mapping[str, float], hint: str,
        keeping: Callable[[Layer], str],
    ) -> PlanError:  # fmt: skip
        """The error of a budget that the least reachable cost exceeds: which, by how much, and what the rest hangs on.

        Args:
            groups: the channel groups.
            costs: their costs.
            remove: the groups that go where the least is left.
            least: what is left then, by kind.
            hint: what else could be loosened.
            keeping: says why a layer keeps what nothing pins.
        """
        kind = max(self.most, key=lambda kind: least[kind] / self.most[kind])
        holders = "; ".join(_holders(groups, costs, remove, kind, keeping))
        share = 100 * least[kind] / max(self.original[kind], 1)
        return PlanError(
            f"{kind} cannot come down to {self.most[kind]:,.0f}: the least reachable is {least[kind]:,.0f}, {share:.1f} % of the original"
            + (f", held up by {holders}" if holders else ""),
            where="budget",
            remedy=f"Ask for at least that{hint}.",
        )


def _holders(
    groups: ChannelGroups, costs: WidthCost, remove: NDArray[np.bool_], kind: str, keeping: Callable[[Layer], str], most: int = 3
) -> list[str]:
    """The layers whose channels the largest part of a cost depends on, with the reason why these stay."""
    widths = costs.widths(~remove[groups.group])
    products = widths[costs.factors].prod(1) * costs.coefficients[kind]
    dependent = np.array([products[(costs.factors == number).any(1)].sum() for number in range(len(costs.sets))])
    by_labels = {labels.tobytes(): float(dependent[number]) for number, labels in enumerate(costs.sets) if number}
    layers = sorted(groups.layers, key=lambda layer: -by_labels.get(layer.labels.numpy().astype(np.int64).tobytes(), 0.0))
    found = []
    for layer in layers[:most]:
        own = groups.group[layer.labels.numpy()]
        stays = own[~remove[own]]
        pinned = stays[groups.pinned[stays]]
        reason = str(groups.reasons[int(pinned[0])]) if pinned.size else keeping(layer)
        found.append(f"{layer.node.location} ({stays.size} of {own.size} channels stay: {reason})")
    return found
