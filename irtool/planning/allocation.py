"""Allocation: which groups go, given scores, a ratio and the conditions that always hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

from irtool.analysis.balance import Balance
from irtool.analysis.groups import ChannelGroups, distinct
from irtool.planning.criteria import Scores

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Limits:
    """What must hold for every layer: at least `min_channels` stay, and a multiple of `round_to` where reachable."""

    min_channels: int = 1
    round_to: int = 1


def wanted(groups: ChannelGroups, scores: Scores, ratio: float, scope: str, *, inclusive: bool) -> Mask:
    """The groups that a ratio asks to remove, before any condition. Shape (groups,).

    `scope="global"` removes the lowest `int(N * ratio)` of all N scored free groups; `inclusive` is the published rule
    of network slimming: everything at or below the score at that index of the sorted list. `scope="local"` removes the
    lowest `int(n * ratio)` of each family of layers.
    """
    free = ~groups.pinned & ~np.isnan(scores)
    remove = np.zeros(groups.count, bool)
    if ratio == 0:
        return remove
    if scope == "global":
        _lowest(remove, np.flatnonzero(free), scores, ratio, inclusive)
        return remove
    members = np.flatnonzero(free)
    family = groups.family[len(groups.layers) :][members]
    ranked = members[np.lexsort((scores[members], family))]  # stable: equal scores stay in the order of their groups
    sizes = np.bincount(family)
    place = np.arange(ranked.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # the rank within the family
    remove[ranked[place < np.repeat((sizes * ratio + 1e-9).astype(np.int64), sizes)]] = True
    return remove


def _lowest(remove: Mask, members: Ints, scores: Scores, ratio: float, inclusive: bool) -> None:
    if not members.size:
        return
    ranked = members[np.argsort(scores[members], kind="stable")]
    if inclusive:
        threshold = scores[ranked[int(members.size * ratio)]]
        remove[members[scores[members] <= threshold]] = True
    else:
        remove[ranked[: int(members.size * ratio + 1e-9)]] = True


def settle(groups: ChannelGroups, scores: Scores, remove: Mask, limits: Limits) -> Mask:
    """Change the wish as little as possible so that every condition holds: balances exactly, then minima and rounding."""
    remove = remove & ~groups.pinned
    layers = _Sets(groups, [layer.labels.numpy() for layer in groups.layers], limits)
    floors = _Sets(groups, [floor.numpy() for floor in groups.labels.floors], Limits())
    balanced = np.zeros(groups.count, bool)
    for balance in groups.balances:
        balanced[np.concatenate(balance.cells)] = True
    for balance in groups.balances:
        _rebalance(balance, scores, remove, layers, limits)
    for _ in range(groups.count + 2):
        changed = layers.give_back(scores, remove, balanced)
        changed |= floors.give_back(scores, remove, balanced)
        if not (_close_ties(groups, remove) or changed):
            return remove
    return np.zeros(groups.count, bool)


class _Sets:
    """Sets of labels that limits hold for, with the groups of all of them in one array, so that one look finds who breaks them.

    Attributes:
        groups: group of every label of every set, one set after the other, shape (entries,).
        owner: which set each entry belongs to, shape (entries,).
        starts: where each set begins, and `totals` how many labels it has; empty sets are left out.
    """

    def __init__(self, groups: ChannelGroups, sets: list[Ints], limits: Limits) -> None:
        found = [labels[labels >= 0] for labels in sets]
        found = [labels for labels in found if labels.size]
        self.groups: Ints = groups.group[np.concatenate(found)] if found else np.zeros(0, np.int64)
        self.totals = np.array([labels.size for labels in found], np.int64)
        self.starts = np.cumsum(self.totals) - self.totals
        self.owner = np.repeat(np.arange(self.totals.size), self.totals)
        self.limits = limits

    def of(self, index: int) -> Ints:
        """The group of each label of one set."""
        return self.groups[self.starts[index] : self.starts[index] + self.totals[index]]

    def give_back(self, scores: Scores, remove: Mask, balanced: Mask) -> bool:
        """Restore the most important groups of each set in turn until its limits hold. True if any was restored."""
        changed, first = False, 0
        while first < self.totals.size:
            gone = np.add.reduceat(remove[self.groups[self.starts[first] :]], self.starts[first:] - self.starts[first], dtype=np.int64)
            bad = np.flatnonzero((gone > 0) & ~_holds(self.totals[first:], self.totals[first:] - gone, self.limits))
            if not bad.size:
                break
            index = first + int(bad[0])
            changed |= _give_back(self.of(index), scores, remove, balanced, self.limits)
            first = index + 1
        return changed


def _give_back(groups: Ints, scores: Scores, remove: Mask, balanced: Mask, limits: Limits) -> bool:
    """Restore a set's most important groups until its limits hold. True if any was restored."""
    members, times = np.unique(groups, return_counts=True)
    total, gone = int(times.sum()), int(times[remove[members]].sum())
    changed = False
    while gone and not bool(_holds(total, total - gone, limits)):
        candidates = members[remove[members] & ~balanced[members]]
        if not candidates.size:
            break
        best = candidates[np.argmax(scores[candidates])]
        remove[best] = False
        gone -= int(times[members == best][0])
        changed = True
    return changed


def _holds(total: Any, kept: Any, limits: Limits) -> Any:
    """Whether the limits hold for numbers of channels, or for arrays of them."""
    return (kept >= np.minimum(limits.min_channels, total)) & (kept > 0) & ((kept % limits.round_to == 0) | (kept == total))


def _close_ties(groups: ChannelGroups, remove: Mask) -> bool:
    """A selection's copy goes with its source. True if the mask changed."""
    changed = False
    for _, source, copies in groups.labels.ties:
        lost = remove[groups.group[source.numpy()]] & ~remove[groups.group[copies.numpy()]]
        stuck = lost & groups.pinned[groups.group[copies.numpy()]]
        if stuck.any():
            remove[groups.group[source.numpy()[stuck]]] = False
        if lost.any():
            remove[groups.group[copies.numpy()[lost & ~stuck]]] = True
            changed = True
    return changed


def _rebalance(balance: Balance, scores: Scores, remove: Mask, layers: _Sets, limits: Limits) -> None:
    """Replace the wish within a balanced family by the nearest one that keeps the balance: the lowest groups of each cell."""
    target = np.array([int(remove[cell].sum()) for cell in balance.cells])
    members = np.concatenate(balance.cells)
    remove[members] = False
    if not target.any():
        return
    rows = _layer_rows(balance, layers, remove.size)
    nearest = _nearest_alike if balance.alike else _nearest
    for rounding in dict.fromkeys((limits.round_to, 1)):
        taken = nearest(balance, target, rows, rounding)
        if taken is not None and (taken.any() or rounding == 1):
            for cell, count in zip(balance.cells, taken.tolist(), strict=True):
                remove[cell[np.argsort(scores[cell], kind="stable")][:count]] = True
            return


def _layer_rows(balance: Balance, layers: _Sets, count: int) -> list[tuple[Ints, int, int]]:
    """For each layer that the family touches: channels lost for one group of each cell, its size, what it may lose."""
    rows = []
    where = np.full(count, -1)
    for index, cell in enumerate(balance.cells):
        where[cell] = index
    entries = where[layers.groups]
    for index in distinct(layers.owner[entries >= 0]).tolist():
        members, times = np.unique(layers.of(index), return_counts=True)
        loss = np.zeros(len(balance.cells), np.int64)
        inside = where[members] >= 0
        loss[where[members[inside]]] = times[inside]
        total = int(layers.totals[index])
        rows.append((loss, total, total - min(max(layers.limits.min_channels, 1), total)))
    return rows


def _nearest_alike(balance: Balance, target: Ints, layers: list[tuple[Ints, int, int]], round_to: int) -> Ints | None:
    """`_nearest` where every cell gives the same number: all numbers are tried. Of equally near ones, that with the total asked for."""
    cells = len(balance.cells)
    numbers = np.arange(min(map(len, balance.cells)) + 1)
    allowed = (balance.rows.sum(1)[:, None] * numbers <= balance.room[:, None]).all(0)
    for loss, total, limit in layers:
        lost = int(loss.sum()) * numbers
        allowed &= (lost <= limit) & ((total - lost) % round_to == 0)
    if not allowed.any():
        return None
    numbers = numbers[allowed]
    distance = np.abs(numbers[:, None] - target).sum(1)
    best = numbers[np.lexsort((numbers, np.abs(numbers * cells - target.sum()), distance))[0]]
    return np.full(cells, best)


def _nearest(balance: Balance, target: Ints, layers: list[tuple[Ints, int, int]], round_to: int) -> Ints | None:
    """Integer counts nearest to `target` (least sum of distances) under all conditions; None if there are none.

    Variables: counts, distances, and for rounding one multiple a layer. Solved by HiGHS through scipy.
    """
    cells, extra = len(balance.cells), len(layers) if round_to > 1 else 0
    width = 2 * cells + extra
    cost = np.concatenate([np.zeros(cells), np.ones(cells), np.zeros(extra)])
    eye = np.eye(cells)
    rows: list[tuple[Any, Any, Any]] = [
        (np.hstack([-eye, eye, np.zeros((cells, extra))]), -target, np.inf),
        (np.hstack([eye, eye, np.zeros((cells, extra))]), target, np.inf),
    ]
    rows.append((_pad(balance.equal, width), 0, 0))
    rows.append((_pad(balance.rows, width), -np.inf, balance.room))
    for number, (loss, total, limit) in enumerate(layers):
        rows.append((_pad(loss[None], width), -np.inf, limit))
        if extra:
            row = _pad(loss[None], width)
            row[0, 2 * cells + number] = round_to
            rows.append((row, total, total))
    constraints = [LinearConstraint(matrix, low, high) for matrix, low, high in rows if len(matrix)]
    upper = np.concatenate([[len(cell) for cell in balance.cells], np.full(cells + extra, np.inf)])
    integral = np.concatenate([np.ones(cells), np.zeros(cells), np.ones(extra)])
    found = milp(cost, constraints=constraints, bounds=Bounds(0, upper), integrality=integral, options={"time_limit": 10.0})
    if found.x is None:
        return None
    return np.round(found.x[:cells]).astype(np.int64)


def _pad(matrix: Ints, width: int) -> NDArray[np.float64]:
    return np.hstack([matrix, np.zeros((matrix.shape[0], width - matrix.shape[1]))])
