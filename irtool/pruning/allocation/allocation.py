"""Allocation: which groups go, given scores, a ratio and the conditions that always hold."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

from irtool.channels.balance import Balance
from irtool.channels.groups import ChannelGroups
from irtool.errors import PlanError
from irtool.pruning.criteria.criteria import Scores

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Limits:
    """The conditions that hold for every layer: at least `min_channels` stay, and a multiple of its step where reachable.

    Attributes:
        min_channels: for all layers.
        steps: the multiple that each layer keeps, in the order of `ChannelGroups.layers`; 1 for all if None.
    """

    min_channels: int = 1
    steps: Ints | None = None


def wanted(groups: ChannelGroups, scores: Scores, ratio: float, scope: str, *, inclusive: bool) -> Mask:
    """The groups that a ratio asks to remove, before any condition. Shape (groups,).

    `scope="global"` removes the lowest `int(N * ratio)` of all N scored free groups, and with `inclusive` one more: the published
    rule of network slimming takes the score at that index of the sorted list too. It takes all that are equal to it as well; here
    those go first that come first, or a net whose scales are all alike would lose nearly everything. `scope="local"` removes the
    lowest `int(n * ratio)` of each family of layers, `scope="isomorphic"` of all families that are alike but for their sizes (Fang
    et al. 2024, "Isomorphic pruning for vision models"): scores are compared only where they mean the same.
    """
    free = ~groups.pinned & ~np.isnan(scores)
    remove = np.zeros(groups.count, bool)
    if ratio == 0:
        return remove
    members = np.flatnonzero(free)
    if scope == "global":
        number = int(members.size * ratio) + 1 if inclusive else int(members.size * ratio + 1e-9)
        remove[members[np.argsort(scores[members], kind="stable")][:number]] = True
        return remove
    family = (alike(groups) if scope == "isomorphic" else groups.family)[len(groups.layers) :][members]
    _lowest_of_each(remove, members, family, scores, (np.bincount(family) * ratio + 1e-9).astype(np.int64))
    return remove


def alike(groups: ChannelGroups) -> Ints:
    """`groups.family` with the families joined that make and read their channels by the same operators, in the same way."""
    layers, signs = len(groups.layers), dict[int, list[tuple[str, str, int]]]()
    for (name, axis), labels in groups.labels.axes.items():
        value = groups.graph.params.get(name)
        own = labels[labels >= 0]
        if value is None or not own.numel():
            continue
        how = "grouped" if not isinstance(axis, int) else str(axis)
        family = int(groups.family[layers + groups.group[int(own[0])]])
        signs.setdefault(family, []).extend((node.op, how, len(value.sizes)) for node in value.uses)
    classes: dict[tuple[tuple[str, str, int], ...], int] = {}
    table = {family: classes.setdefault(tuple(sorted(set(found))), len(classes)) for family, found in signs.items()}
    return np.array([table.get(family, len(classes) + family) for family in groups.family.tolist()], np.int64)


def _lowest_of_each(remove: Mask, members: Ints, owner: Ints, scores: Scores, numbers: Ints) -> None:
    """Remove the lowest `numbers[i]` of the members whose owner is i, for every i at once."""
    ranked = members[np.lexsort((scores[members], owner))]  # stable: equal scores stay in their order
    sizes = np.bincount(owner, minlength=numbers.size)
    place = np.arange(ranked.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # the rank within those of one owner
    remove[ranked[place < np.repeat(numbers, sizes)]] = True


def satisfied(groups: ChannelGroups, scores: Scores, remove: Mask, limits: Limits) -> Mask:
    """Change the wish as little as possible so that every condition holds: balances exactly, then minima and rounding."""
    remove = remove & ~groups.pinned
    layers = _Sets(groups, [layer.labels.numpy() for layer in groups.layers], limits)
    floors = _Sets(groups, [floor.numpy() for floor in groups.labels.floors], Limits())
    balanced = np.zeros(groups.count, bool)
    for balance in groups.balances:
        balanced[np.concatenate(balance.cells)] = True
    for balance in groups.balances:
        _rebalance(balance, scores, remove, layers)
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
        starts: where each set begins, `totals` how many labels it has, and `steps` the multiple that it keeps; empty sets are left out.
    """

    def __init__(self, groups: ChannelGroups, sets: list[Ints], limits: Limits) -> None:
        found = [labels[labels >= 0] for labels in sets]
        steps = np.ones(len(found), np.int64) if limits.steps is None else limits.steps
        self.steps: Ints = steps[[labels.size > 0 for labels in found]]
        found = [labels for labels in found if labels.size]
        self.groups: Ints = groups.group[np.concatenate(found)] if found else np.zeros(0, np.int64)
        self.totals = np.array([labels.size for labels in found], np.int64)
        self.starts = np.cumsum(self.totals) - self.totals
        self.owner = np.repeat(np.arange(self.totals.size), self.totals)
        self.least = limits.min_channels

    def of(self, index: int) -> Ints:
        """The group of each label of one set."""
        return self.groups[self.starts[index] : self.starts[index] + self.totals[index]]

    @cached_property
    def _by_group(self) -> tuple[Ints, Ints]:
        """All entries sorted by group, and the groups in that order."""
        order = np.argsort(self.groups, kind="stable")
        return order, self.groups[order]

    def losses(self, cells: list[Ints]) -> tuple[Ints, Ints]:
        """The sets that a balance's cells touch, and what each loses for one group of each cell, shape (sets, cells)."""
        order, ranked = self._by_group
        members = np.concatenate(cells)
        first, last = np.searchsorted(ranked, members, "left"), np.searchsorted(ranked, members, "right")
        often = last - first
        entries = order[np.arange(often.sum()) + np.repeat(first - (np.cumsum(often) - often), often)]
        position = np.repeat(np.arange(members.size), often)  # which member an entry is of
        pairs, times = np.unique(self.owner[entries] * members.size + position, return_counts=True)
        touched, index = np.unique(pairs // members.size, return_inverse=True)
        loss = np.zeros((touched.size, len(cells)), np.int64)
        cell = np.repeat(np.arange(len(cells)), [len(found) for found in cells])[pairs % members.size]
        np.maximum.at(loss, (index, cell), times)
        return touched, loss

    def give_back(self, scores: Scores, remove: Mask, balanced: Mask) -> bool:
        """Restore the most important groups of each set in turn until its limits hold. True if any was restored."""
        changed, first = False, 0
        while first < self.totals.size:
            gone = np.add.reduceat(remove[self.groups[self.starts[first] :]], self.starts[first:] - self.starts[first], dtype=np.int64)
            bad = np.flatnonzero((gone > 0) & ~_holds(self.totals[first:], self.totals[first:] - gone, self.least, self.steps[first:]))
            if not bad.size:
                break
            index = first + int(bad[0])
            changed |= _give_back(self.of(index), scores, remove, balanced, self.least, int(self.steps[index]))
            first = index + 1
        return changed


def _give_back(groups: Ints, scores: Scores, remove: Mask, balanced: Mask, least: int, step: int) -> bool:
    """Restore a set's most important groups until its limits hold. True if any was restored."""
    members, times = np.unique(groups, return_counts=True)
    total, gone = int(times.sum()), int(times[remove[members]].sum())
    changed = False
    while gone and not bool(_holds(total, total - gone, least, step)):
        candidates = members[remove[members] & ~balanced[members]]
        if not candidates.size:
            break
        best = candidates[np.argmax(scores[candidates])]
        remove[best] = False
        gone -= int(times[members == best][0])
        changed = True
    return changed


def _holds(total: Any, kept: Any, least: int, step: Any) -> Any:
    """Whether the limits hold for numbers of channels, or for arrays of them."""
    return (kept >= np.minimum(least, total)) & (kept > 0) & ((kept % step == 0) | (kept == total))


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


def _rebalance(balance: Balance, scores: Scores, remove: Mask, layers: _Sets) -> None:
    """Replace the wish within a balanced family by the nearest one that keeps the balance: the lowest groups of each cell."""
    sizes = [len(cell) for cell in balance.cells]
    members, owner = np.concatenate(balance.cells), np.repeat(np.arange(len(sizes)), sizes)
    target = np.bincount(owner, remove[members]).astype(np.int64)
    remove[members] = False
    if not target.any():
        return
    rows = _Rows.of(balance, layers)
    taken = (_nearest_alike if balance.alike else _nearest)(balance, target, rows)
    if taken is not None:
        _lowest_of_each(remove, members, owner, scores, taken)


@dataclass(frozen=True)
class _Rows:
    """The layers that a balanced family touches.

    Attributes:
        loss: channels lost for one group of each cell, shape (layers, cells).
        total: their channels, `limit` how many they may lose, and `step` the multiple that they keep, shape (layers,).
    """

    loss: Ints
    total: Ints
    limit: Ints
    step: Ints

    @classmethod
    def of(cls, balance: Balance, layers: _Sets) -> _Rows:
        """Those of a family."""
        touched, loss = layers.losses(balance.cells)
        total = layers.totals[touched]
        return cls(loss, total, total - np.minimum(max(layers.least, 1), total), layers.steps[touched])


def _nearest_alike(balance: Balance, target: Ints, layers: _Rows) -> Ints | None:
    """`_nearest` where every cell gives the same number: all numbers are tried. Of equally near ones, that with the total asked for."""
    cells = len(balance.cells)
    numbers = np.arange(min(map(len, balance.cells)) + 1)
    lost = layers.loss.sum(1)[:, None] * numbers
    allowed = (balance.rows.sum(1)[:, None] * numbers <= balance.room[:, None]).all(0)
    allowed &= ((lost <= layers.limit[:, None]) & (((layers.total[:, None] - lost) % layers.step[:, None] == 0) | (lost == 0))).all(0)
    if not allowed.any():
        return None
    numbers = numbers[allowed]
    distance = np.abs(numbers[:, None] - target).sum(1)
    best = numbers[np.lexsort((numbers, np.abs(numbers * cells - target.sum()), distance))[0]]
    return np.full(cells, best)


def _nearest(balance: Balance, target: Ints, layers: _Rows) -> Ints | None:
    """Integer counts nearest to `target` (least sum of distances) under all conditions; None, so that all stay, if there are none.

    Variables: counts, distances, and for rounding one multiple a layer. Solved by HiGHS through scipy.
    """
    cells, extra = len(balance.cells), len(layers.total) if (layers.step > 1).any() else 0
    width = 2 * cells + extra
    # Of equally near ones the one that removes most: else it is the solver's release that chooses. Too little to outweigh a distance of 1.
    most = sum(map(len, balance.cells))
    cost = np.concatenate([np.full(cells, -0.5 / (most + 1)), np.ones(cells), np.zeros(extra)])
    eye = np.eye(cells)
    rows: list[tuple[Any, Any, Any]] = [
        (np.hstack([-eye, eye, np.zeros((cells, extra))]), -target, np.inf),
        (np.hstack([eye, eye, np.zeros((cells, extra))]), target, np.inf),
    ]
    rows.append((_pad(balance.equal, width), 0, 0))
    rows.append((_pad(balance.rows, width), -np.inf, balance.room))
    for number, (loss, total, limit, step) in enumerate(zip(layers.loss, layers.total, layers.limit, layers.step, strict=True)):
        rows.append((_pad(loss[None], width), -np.inf, limit))
        if extra:
            row = _pad(loss[None], width)
            row[0, 2 * cells + number] = step
            rows.append((row, total, total))
    constraints = [LinearConstraint(matrix, low, high) for matrix, low, high in rows if len(matrix)]
    upper = np.concatenate([[len(cell) for cell in balance.cells], np.full(cells + extra, np.inf)])
    integral = np.concatenate([np.ones(cells), np.zeros(cells), np.ones(extra)])
    found = milp(cost, constraints=constraints, bounds=Bounds(0, upper), integrality=integral, options={"time_limit": 10.0})
    if found.x is None and found.status != 2:  # no answer is no reason to prune nothing
        remedy = "Leave the layers of this family out by ignore=, or ask for another ratio."
        raise PlanError(f"HiGHS found no numbers of channels that keep the balance ({found.message})", where="plan", remedy=remedy)
    if found.x is None:
        return None
    return np.round(found.x[:cells]).astype(np.int64)


def _pad(matrix: Ints, width: int) -> NDArray[np.float64]:
    return np.hstack([matrix, np.zeros((matrix.shape[0], width - matrix.shape[1]))])
