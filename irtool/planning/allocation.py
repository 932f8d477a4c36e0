"""Allocation: which groups go, given scores, a ratio and the conditions that always hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

from irtool.analysis.groups import Balance, ChannelGroups
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
    for family in groups.families:
        members = np.unique(np.concatenate([groups.of(layer.labels.numpy()) for layer in family]))
        members = members[free[members]]
        _lowest(remove, members, scores, ratio, False)
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
    layers = [_counts(groups, layer.labels.numpy()) for layer in groups.layers]
    floors = [_counts(groups, floor.numpy()) for floor in groups.labels.floors]
    balanced = np.zeros(groups.count, bool)
    for balance in groups.balances:
        balanced[np.concatenate(balance.cells)] = True
    for balance in groups.balances:
        _rebalance(balance, scores, remove, layers, limits)
    for _ in range(groups.count + 2):
        changed = sum(_give_back(layer, scores, remove, balanced, limits) for layer in layers) > 0
        changed |= sum(_give_back(floor, scores, remove, balanced, Limits()) for floor in floors) > 0
        if not (_close_ties(groups, remove) or changed):
            return remove
    return np.zeros(groups.count, bool)


def _counts(groups: ChannelGroups, labels: Ints) -> tuple[Ints, Ints]:
    """The groups of some labels, and how many of the labels each has."""
    found, times = np.unique(groups.group[labels[labels >= 0]], return_counts=True)
    return found, times


def _give_back(layer: tuple[Ints, Ints], scores: Scores, remove: Mask, balanced: Mask, limits: Limits) -> bool:
    """Restore a layer's most important groups until its limits hold. True if any was restored."""
    members, times = layer
    total, gone = int(times.sum()), int(times[remove[members]].sum())
    changed = False
    while gone and not _holds(total, total - gone, limits):
        candidates = members[remove[members] & ~balanced[members]]
        if not candidates.size:
            break
        best = candidates[np.argmax(scores[candidates])]
        remove[best] = False
        gone -= int(times[members == best][0])
        changed = True
    return changed


def _holds(total: int, kept: int, limits: Limits) -> bool:
    return kept >= min(limits.min_channels, total) and kept > 0 and (kept % limits.round_to == 0 or kept == total)


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


def _rebalance(balance: Balance, scores: Scores, remove: Mask, layers: list[tuple[Ints, Ints]], limits: Limits) -> None:
    """Replace the wish within a balanced family by the nearest one that keeps the balance: the lowest groups of each cell."""
    target = np.array([int(remove[cell].sum()) for cell in balance.cells])
    members = np.concatenate(balance.cells)
    remove[members] = False
    if not target.any():
        return
    for rounding in dict.fromkeys((limits.round_to, 1)):
        taken = _nearest(balance, target, _layer_rows(balance, layers, limits.min_channels), rounding)
        if taken is not None and (taken.any() or rounding == 1):
            for cell, count in zip(balance.cells, taken.tolist(), strict=True):
                remove[cell[np.argsort(scores[cell], kind="stable")][:count]] = True
            return


def _layer_rows(balance: Balance, layers: list[tuple[Ints, Ints]], min_channels: int) -> list[tuple[Ints, int, int]]:
    """For each layer that the family touches: channels lost for one group of each cell, its size, what it may lose."""
    rows = []
    where = {int(group): index for index, cell in enumerate(balance.cells) for group in cell}
    for members, times in layers:
        loss = np.zeros(len(balance.cells), np.int64)
        for group, many in zip(members.tolist(), times.tolist(), strict=True):
            if group in where:
                loss[where[group]] = many
        if loss.any():
            total = int(times.sum())
            rows.append((loss, total, total - min(max(min_channels, 1), total)))
    return rows


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
