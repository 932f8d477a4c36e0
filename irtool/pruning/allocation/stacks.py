"""Stacks: units of channels in the order in which they can be removed, and the bounds that hold for all of them.

A unit is what has to go at once: one channel group, a channel and its selected copies, or one group from each cell of a balance.
Units of a stack take from the same axes, so that within a stack the least important goes first, whatever the budget.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csc_array

from irtool.analysis.width_cost import Floats, Ints, WidthCost
from irtool.channels.balance import Balance
from irtool.channels.groups import ChannelGroups
from irtool.pruning.allocation.allocation import Limits
from irtool.pruning.criteria.criteria import Scores


@dataclass(frozen=True)
class Stack:
    """Units in the order in which they go.

    Attributes:
        units: the groups of each unit.
        loss: the summed scores of each unit's groups, shape (units,).
        touched: the rows of `Room` that any unit takes from.
        drop: what each unit takes from them, shape (units, touched).
    """

    units: list[Ints]
    loss: Floats
    touched: Ints
    drop: Floats


@dataclass(frozen=True)
class Room:
    """Everything that units take from: first the widths that costs depend on, then the sets that bounds hold for.

    Attributes:
        level: how many are there before anything is removed, shape (rows,).
        least: how many must stay, shape (rows,).
        step: the multiple that a row must be once it has lost anything, shape (rows,).
        takes: what each group takes from each row, shape (rows, groups).
    """

    level: Floats
    least: Floats
    step: Ints
    takes: csc_array


def room_of(groups: ChannelGroups, costs: WidthCost, limits: Limits, shares: Mapping[int, float]) -> Room:
    """The rows of a graph.

    Args:
        groups: its channel groups.
        costs: its costs by widths.
        limits: what holds for every layer.
        shares: the largest fraction of its channels that a layer may lose, by its number among `groups.layers`.
    """
    layers = [layer.labels.numpy() for layer in groups.layers]
    floors = [floor.numpy() for floor in groups.labels.floors]
    sets = [labels[labels >= 0] for labels in (*costs.sets[1:], *layers, *floors)]
    widths, level = len(costs.sets), np.array([1, *map(len, sets)], float)
    least = np.zeros(level.size)
    for number, labels in enumerate(layers):
        size = int((labels >= 0).sum())
        keeps = size - int(size * shares.get(number, 1.0) + 1e-9)
        least[widths + number] = min(max(limits.min_channels, keeps, 1), size)
    least[widths + len(layers) :] = np.minimum(1, level[widths + len(layers) :])
    step = np.ones(level.size, np.int64)
    if limits.steps is not None:
        step[widths : widths + len(layers)] = limits.steps
    owner = np.repeat(np.arange(1, level.size), level[1:].astype(np.int64))
    members = groups.group[np.concatenate(sets)] if sets else np.zeros(0, np.int64)
    values, extra = np.ones(members.size), level.size
    for balance in groups.balances:
        members, owner, values = _rows_of(balance, members, owner, values, extra)
        extra += len(balance.room)
        level, least = np.append(level, balance.room), np.append(least, np.zeros(len(balance.room)))
        step = np.append(step, np.ones(len(balance.room), np.int64))
    takes = csc_array((values, (owner, members)), shape=(level.size, groups.count))
    return Room(level, least, step, takes)


def _rows_of(balance: Balance, members: Ints, owner: Ints, values: Floats, first: int) -> tuple[Ints, Ints, Floats]:
    """The rows of a balanced family beside those before."""
    for cell, found in enumerate(balance.cells):
        rows = np.flatnonzero(balance.rows[:, cell])
        members = np.append(members, np.repeat(found, rows.size))
        owner = np.append(owner, np.tile(rows + first, found.size))
        values = np.append(values, np.tile(balance.rows[rows, cell], found.size))
    return members, owner, values


def stacks_of(groups: ChannelGroups, scores: Scores, room: Room) -> list[Stack]:
    """All units, in stacks.

    Args:
        groups: the channel groups.
        scores: the loss that each group's removal causes, NaN where it has no score and stays, shape (groups,).
        room: the rows that they take from.
    """
    free = ~groups.pinned & ~np.isnan(scores) & _listed(groups)
    balanced = np.zeros(groups.count, bool)
    units: list[Sequence[Ints]] = []
    for balance in groups.balances:
        balanced[np.concatenate(balance.cells)] = True
        units.append(_balanced_units(balance, scores, free))
    units += _alike([unit for unit in _tied(groups, free & ~balanced) if free[unit].all() and not balanced[unit].any()], scores, room)
    return [_stack(found, scores, room) for found in units if len(found)]


def _listed(groups: ChannelGroups) -> NDArray[np.bool_]:
    """Mark the groups whose channels some layer makes: a plan can name no others."""
    listed = np.zeros(groups.count, bool)
    for found in groups.owned:
        listed[found] = True
    return listed


def _tied(groups: ChannelGroups, free: NDArray[np.bool_]) -> list[Ints]:
    """Single groups; a source that may go takes its selected copies along."""
    owner = np.arange(groups.count)
    for _, source, copies in groups.labels.ties:
        a, b = groups.group[source.numpy()], groups.group[copies.numpy()]
        for first, second in zip(a[free[a]].tolist(), b[free[a]].tolist(), strict=True):
            owner[owner == owner[second]] = owner[first]
    wanted = np.flatnonzero(free | (owner != np.arange(groups.count)))
    order = wanted[np.argsort(owner[wanted], kind="stable")]
    return np.split(order, np.flatnonzero(np.diff(owner[order])) + 1) if order.size else []


def _alike(units: list[Ints], scores: Scores, room: Room) -> list[Sequence[Ints]]:
    """Units that take the same from the same rows, together; the least important first."""
    found: dict[bytes, list[Ints]] = defaultdict(list)
    for unit in units:
        found[_taken(unit, room).tobytes()].append(unit)
    return [sorted(some, key=lambda unit: float(scores[unit].sum())) for some in found.values()]


def _taken(unit: Ints, room: Room) -> Floats:
    """Return the numbers of channels that a unit takes from each row, as (row, number) pairs in one array."""
    starts, rows, data = room.takes.indptr, room.takes.indices, room.takes.data
    parts = [slice(starts[group], starts[group + 1]) for group in unit]
    names, place = np.unique(np.concatenate([rows[part] for part in parts]), return_inverse=True)
    return np.stack([names, np.bincount(place, np.concatenate([data[part] for part in parts]))]).astype(float)


def _stack(units: Sequence[Ints], scores: Scores, room: Room) -> Stack:
    taken = [_taken(unit, room) for unit in units]
    touched = np.unique(np.concatenate([names for names, _ in taken])).astype(np.int64)
    drop = np.zeros((len(units), touched.size))
    for row, (names, many) in enumerate(taken):
        drop[row, np.searchsorted(touched, names.astype(np.int64))] = many
    return Stack(list(units), np.array([scores[unit].sum() for unit in units]), touched, drop)


def _balanced_units(balance: Balance, scores: Scores, free: NDArray[np.bool_]) -> list[Ints]:
    """Units of a balanced family: the least important groups of each cell, in the smallest numbers that keep the balance.

    Where several sets of numbers do, the units with the least mean score come first.
    """
    cells = [cell[free[cell]] for cell in balance.cells]
    cells = [cell[np.argsort(scores[cell], kind="stable")] for cell in cells]
    wanted = [np.ones(len(cells), np.int64)] if balance.alike else _smallest(balance, np.array([len(cell) for cell in cells]))
    taken = np.zeros(len(cells), np.int64)
    units: list[Ints] = []
    while True:
        open_now = [
            numbers for numbers in wanted if all(at + more <= len(cell) for at, more, cell in zip(taken, numbers, cells, strict=True))
        ]
        found = [
            np.concatenate([cell[at : at + more] for at, more, cell in zip(taken, numbers, cells, strict=True)]) for numbers in open_now
        ]
        if not found:
            return units
        best = int(np.argmin([scores[unit].mean() for unit in found]))
        units.append(found[best])
        taken += open_now[best]


def _smallest(balance: Balance, most: Ints) -> list[Ints]:
    """For each cell the least numbers of groups that take one from it and keep the balance; equal ones once. Solved by HiGHS through scipy."""
    count = len(balance.cells)
    found: dict[bytes, Ints] = {}
    for cell in range(count):
        if any(numbers[cell] for numbers in found.values()):
            continue
        least = np.zeros(count)
        least[cell] = 1
        if (least > most).any():
            continue
        conditions = [LinearConstraint(balance.rows, -np.inf, balance.room)]
        conditions += [LinearConstraint(balance.equal, 0, 0)] if len(balance.equal) else []
        solved = milp(
            np.ones(count),
            constraints=conditions,
            bounds=Bounds(least, most),
            integrality=np.ones(count, np.int64),
            options={"time_limit": 5.0},
        )
        if solved.x is not None:
            numbers = np.round(solved.x).astype(np.int64)
            found[numbers.tobytes()] = numbers
    return list(found.values())
