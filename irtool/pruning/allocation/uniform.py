"""Allocation to a budget with equal shares: the smallest ratio of every layer, or of every class of like layers, that keeps to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from irtool.analysis.width_cost import WidthCost
from irtool.channels.groups import ChannelGroups
from irtool.pruning.allocation.allocation import Limits, satisfied, wanted
from irtool.pruning.allocation.greedy import Outcome
from irtool.pruning.criteria.criteria import Scores

STEPS = 24
"""Halvings of the range of ratios: finer than one channel of sixteen million."""
Mask = NDArray[np.bool_]


def allocate_uniform(
    groups: ChannelGroups,
    scores: Scores,
    costs: WidthCost,
    targets: Mapping[str, float],
    limits: Limits,
    scope: str,
    shares: Mapping[int, float],
) -> Outcome:
    """Remove the least important of every layer (or class) by one ratio, the smallest that keeps to the budget; then give back what fits.

    Args:
        groups: the channel groups.
        scores: one a group, NaN where it stays.
        costs: by widths.
        targets: by kind of cost, the most that may be left.
        limits: what holds for every layer.
        scope: `local` or `isomorphic`.
        shares: the largest fraction of its channels that a layer may lose, by its number.
    """
    uniform = _Uniform(groups, scores, costs, targets, limits, scope, shares)
    low, high = 0.0, 1.0
    best, looser = uniform.at(1.0), np.zeros(groups.count, bool)
    if not uniform.holds(best):
        return Outcome(best, uniform.cost(best), False)
    for _ in range(STEPS):
        middle = (low + high) / 2
        found = uniform.at(middle)
        if uniform.holds(found):
            best, high = found, middle
        else:
            looser, low = found, middle
    best = uniform.given_back(best, looser)
    return Outcome(best, uniform.cost(best), True)


@dataclass(frozen=True)
class _Uniform:
    groups: ChannelGroups
    scores: Scores
    costs: WidthCost
    targets: Mapping[str, float]
    limits: Limits
    scope: str
    shares: Mapping[int, float]

    @cached_property
    def listed(self) -> Mask:
        """The groups that some layer makes."""
        found = np.zeros(self.groups.count, bool)
        for own in self.groups.owned:
            found[own] = True
        return found

    def at(self, ratio: float) -> Mask:
        """Remove by one ratio, under all conditions."""
        wish = wanted(self.groups, self.scores, ratio, self.scope, inclusive=False) & self.listed
        for number, share in self.shares.items():
            own = self.groups.group[self.groups.layers[number].labels.numpy()]
            gone = np.unique(own[wish[own]])
            most = int(own.size * share + 1e-9)
            ranked = gone[np.argsort(self.scores[gone], kind="stable")]
            taken = np.cumsum([(own == group).sum() for group in ranked])
            wish[ranked[taken > most]] = False
        return satisfied(self.groups, self.scores, wish, self.limits)

    def cost(self, remove: Mask) -> dict[str, float]:
        """Count what is left."""
        left = self.costs.total(self.costs.widths(~remove[self.groups.group]))
        return {kind: left[kind] for kind in self.targets}

    def holds(self, remove: Mask) -> bool:
        """Whether it keeps to the budget."""
        return all(left <= self.targets[kind] + 1e-6 for kind, left in self.cost(remove).items())

    def given_back(self, remove: Mask, looser: Mask) -> Mask:
        """Layers of one width take their steps together. Let single families stay at the next larger width while that fits."""
        family = self.groups.family[len(self.groups.layers) :]
        more = remove & ~looser
        for number in sorted(
            np.unique(family[more]).tolist(), key=lambda number: -float(np.nansum(self.scores[more & (family == number)]))
        ):
            wish = remove & ~(more & (family == number))
            found = satisfied(self.groups, self.scores, wish, self.limits)
            if self.holds(found):
                remove = found
        return remove
