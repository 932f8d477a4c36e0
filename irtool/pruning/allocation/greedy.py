"""Allocation to a budget: remove what costs the least loss for each unit of the budget, until the budget holds.

The order is greedy with look-ahead: of every stack the prefix of units with the least loss per saved cost is found, at the widths
that the others have by now, and the best of all stacks goes. What a channel saves shrinks as its neighbours do.

Steps differ in size, so that the last of them may leave a part of the budget unused that no single unit fits into. Then units are
exchanged: some of one stack come back, and some of another go.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from irtool.analysis.width_cost import Floats, Ints, WidthCost
from irtool.pruning.allocation.stacks import Room, Stack

LOOK_AHEAD = 12
"""So many steps of a stack are looked at together: one important channel must not hide the cheap ones behind it."""
USED = 0.97
"""Of the tightest target. Below it units are exchanged."""
_EXCHANGES = 16
_CANDIDATES = 32
"""Stacks that may get units back, and as many that may lose them, in one exchange."""
_BACK = 4
"""Steps that come back in one exchange, at most."""
_REFRESH = 0.05
"""Change of an excess, as a fraction, after which the weights of several exceeded budgets are set anew."""


@dataclass(frozen=True)
class Outcome:
    """The result of an allocation.

    Attributes:
        remove: bool, shape (groups,).
        cost: by kind, what is left.
        reached: whether every target holds.
    """

    remove: NDArray[np.bool_]
    cost: dict[str, float]
    reached: bool


def allocate(stacks: Sequence[Stack], room: Room, costs: WidthCost, targets: Mapping[str, float]) -> Outcome:
    """Remove units until no cost exceeds its target, then give back what still fits.

    Args:
        stacks: what can go, in order.
        room: the rows that it takes from.
        costs: the costs by widths, the first rows of `room`.
        targets: by kind of cost, the most that may be left.
    """
    return _Greedy(stacks, room, costs, dict(targets)).run()


def finished(stacks: Sequence[Stack], room: Room, costs: WidthCost, targets: Mapping[str, float], counts: Sequence[int]) -> Outcome:
    """Remove so many of each stack's first units; then what is still too much goes, what fits comes back, and units are exchanged."""
    greedy = _Greedy(stacks, room, costs, dict(targets))
    for number, count in enumerate(counts):
        if count:
            greedy.take(number, count)
    return greedy.run()


class _Greedy:
    def __init__(self, stacks: Sequence[Stack], room: Room, costs: WidthCost, targets: dict[str, float]) -> None:
        self.stacks, self.room, self.costs, self.targets = stacks, room, costs, targets
        self.level = room.level.copy()
        self.first = [0] * len(stacks)
        self.gone: list[list[int]] = [[] for _ in stacks]
        self.local = [_Local.of(stack, costs) for stack in stacks]
        self.window = [LOOK_AHEAD * _period(stack, room) for stack in stacks]
        self.readers = _sharing(self.local, len(costs.factors))
        self.smallest = 1e-9 * float(np.mean([stack.loss.mean() for stack in stacks])) if stacks else 0.0
        self.products = self._products()
        self.left = self._left()
        self.weights: Floats = np.zeros(len(costs.factors))
        self.seen: dict[str, float] = {}

    def run(self) -> Outcome:
        """Take the best step again and again."""
        ratio = np.full(len(self.stacks), np.inf)
        steps = [0] * len(self.stacks)
        stale = set(range(len(self.stacks)))
        while self._exceeded():
            if self._refresh():
                stale = set(range(len(self.stacks)))
            for number in stale:
                ratio[number], steps[number] = self._best_step(number)
            if not ratio.size or not np.isfinite(ratio.min()):
                break
            best = int(ratio.argmin())
            self.take(best, steps[best])
            stale = self.readers[best]
        self.products = self._products()  # rounding errors of many small changes
        self.left = self._left()
        reached = not self._exceeded()
        if reached:
            self._give_back()
            for _ in range(_EXCHANGES):
                if self._used() >= USED or not self._exchange():
                    break
        remove = np.zeros(self.room.takes.shape[1], bool)
        for stack, taken in zip(self.stacks, self.gone, strict=True):
            for unit in taken:
                remove[stack.units[unit]] = True
        return Outcome(remove, self.left, reached)

    def _products(self) -> Floats:
        found: Floats = self.level[self.costs.factors].prod(1)
        return found

    def _left(self) -> dict[str, float]:
        return {kind: float(self.costs.constant[kind] + self.costs.coefficients[kind] @ self.products) for kind in self.targets}

    def _exceeded(self) -> list[str]:
        return [kind for kind, target in self.targets.items() if self.left[kind] > target + 1e-6]

    def _refresh(self) -> bool:
        """Weigh the costs that are still exceeded, each by its excess as a share of its target. True if the weights changed."""
        excess = {kind: (self.left[kind] - self.targets[kind]) / max(self.targets[kind], 1.0) for kind in self._exceeded()}
        alone = len(excess) == 1
        if excess.keys() == self.seen.keys() and (alone or all(excess[kind] > (1 - _REFRESH) * self.seen[kind] for kind in excess)):
            return False
        self.seen = excess
        parts = [self.costs.coefficients[kind] * (1.0 if alone else share) / max(self.targets[kind], 1.0) for kind, share in excess.items()]
        self.weights = np.sum(parts, axis=0)
        return True

    def _best_step(self, number: int) -> tuple[float, int]:
        """The least loss per saved cost over the next steps of a stack, and how many units that step takes."""
        stack, local = self.stacks[number], self.local[number]
        first = self.first[number] = self._next_that_fits(number)
        window = self.window[number]
        drop = stack.drop[first : first + window].cumsum(0)
        after = self.level[stack.touched] - drop
        fits = (after >= self.room.least[stack.touched]).all(1)
        if window > LOOK_AHEAD:
            fits &= self._rounded(stack, after)
        ends = np.flatnonzero(fits)[:LOOK_AHEAD]
        if not ends.size:
            return np.inf, 0
        saved = self._saved(local, drop[ends])
        loss = stack.loss[first : first + window].cumsum()[ends] + self.smallest
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(saved > 0, loss / saved, np.inf)
        best = int(ratio.argmin())
        return float(ratio[best]), int(ends[best]) + 1

    def _next_that_fits(self, number: int) -> int:
        """The first of the units left that may go at all. What may not now never will, since widths only shrink."""
        stack, first = self.stacks[number], self.first[number]
        fits = (self.level[stack.touched] - stack.drop[first:] >= self.room.least[stack.touched]).all(1)
        return first + int(fits.argmax()) if fits.any() else len(stack.units)

    def _saved(self, local: _Local, drop: Floats) -> Floats:
        """The weighted cost that each of some drops saves, shape (drops,)."""
        found: Floats = self._shrunk(local, drop) @ self.weights[local.terms]
        return found

    def _shrunk(self, local: _Local, drop: Floats) -> Floats:
        """Return the amount that each of some drops takes from each product, shape (drops, terms)."""
        widths = self.level[self.costs.factors[local.terms]] - np.concatenate([np.zeros((len(drop), 1)), drop], 1)[:, local.columns]
        found: Floats = self.products[local.terms] - widths.prod(2)
        return found

    def take(self, number: int, units: int) -> None:
        """Remove the next units of a stack."""
        stack, first = self.stacks[number], self.first[number]
        self._move(number, -stack.drop[first : first + units].sum(0))
        self.gone[number] += range(first, first + units)
        self.first[number] += units

    def _move(self, number: int, change: Floats) -> None:
        """Change the widths that a stack takes from, and the costs with them."""
        terms, touched = self.local[number].terms, self.stacks[number].touched
        self.level[touched] += change
        now = self.level[self.costs.factors[terms]].prod(1)
        for kind in self.left:
            self.left[kind] += float((now - self.products[terms]) @ self.costs.coefficients[kind][terms])
        self.products[terms] = now

    def _rounded(self, stack: Stack, after: Floats) -> NDArray[np.bool_]:
        """Whether all rows of a stack are multiples of their steps, or as wide as they were, shape (drops,)."""
        found: NDArray[np.bool_] = ((after % self.room.step[stack.touched] == 0) | (after == self.room.level[stack.touched])).all(1)
        return found

    def _give_back(self) -> None:
        """The last step of a stack may have been larger than needed: restore the units that lose most and still fit."""
        order = sorted(
            ((self.stacks[number].loss[unit], number, unit) for number, taken in enumerate(self.gone) for unit in taken), reverse=True
        )
        for _, number, unit in order:
            if self.gone[number] and unit == self.gone[number][-1]:
                self._restore(number)

    def _restore(self, number: int) -> None:
        """Give back as few of a stack's last units as its steps allow, if the budget still holds."""
        stack, gone = self.stacks[number], self.gone[number]
        back = stack.drop[gone[::-1][: self.window[number] // LOOK_AHEAD]].cumsum(0)
        fits = np.flatnonzero(self._rounded(stack, self.level[stack.touched] + back))
        if not fits.size:
            return
        change = back[fits[0]]
        self._move(number, change)
        if self._exceeded():
            self._move(number, -change)
        else:
            del gone[-int(fits[0]) - 1 :]

    def _used(self) -> float:
        """The share of the tightest target that is used."""
        return max((self.left[kind] / max(target, 1.0) for kind, target in self.targets.items()), default=1.0)

    def _exchange(self) -> bool:
        """Restore some units of one stack and remove some of another, so that more of the budget is used. False if nothing does.

        What reaches `USED` with the least loss is taken, else what comes nearest. Where widths are rounded, only what loses less.
        """
        removed = [number for number, gone in enumerate(self.gone) if gone]
        removed.sort(key=lambda number: -float(self.stacks[number].loss[self.gone[number][-1]]))
        open_now = [number for number in range(len(self.stacks)) if self._start(number) < len(self.stacks[number].units)]
        open_now.sort(key=lambda number: float(self.stacks[number].loss[self._start(number)]))
        before, best = self._used(), None
        for back in removed[:_CANDIDATES]:
            for count in self._restorable(back):
                units = self.gone[back][-count:]
                change = self.stacks[back].drop[units].sum(0)
                self._move(back, change)
                for other in open_now[:_CANDIDATES]:
                    found = self._fitting(other) if other != back else None
                    if found is None:
                        continue
                    more, used = found
                    start = self._start(other)
                    loss = float(self.stacks[other].loss[start : start + more].sum() - self.stacks[back].loss[units].sum())
                    rounded = max(self.window[back], self.window[other]) > LOOK_AHEAD
                    key = (used < USED, loss if used >= USED else -used)
                    if used > before + 1e-9 and (loss < 0 or not rounded) and (best is None or key < best[0]):
                        best = key, back, count, other, more
                self._move(back, -change)
        if best is None:
            return False
        _, back, count, other, more = best
        self._move(back, self.stacks[back].drop[self.gone[back][-count:]].sum(0))
        del self.gone[back][-count:]
        self.first[other] = self._start(other)
        self.take(other, more)
        return True

    def _start(self, number: int) -> int:
        """The first unit of a stack that comes after those that are gone."""
        return self.gone[number][-1] + 1 if self.gone[number] else 0

    def _restorable(self, number: int) -> list[int]:
        """How many of a stack's last units may come back together."""
        stack, most = self.stacks[number], _BACK * (self.window[number] // LOOK_AHEAD)
        after = self.level[stack.touched] + stack.drop[self.gone[number][::-1][:most]].cumsum(0)
        fits = self._rounded(stack, after) & (after >= self.room.least[stack.touched]).all(1)
        return [int(end) + 1 for end in np.flatnonzero(fits)]

    def _fitting(self, number: int) -> tuple[int, float] | None:
        """The fewest of a stack's next units without which the budget holds, and the share of it that is used then."""
        stack, local, first = self.stacks[number], self.local[number], self._start(number)
        drop = stack.drop[first : first + self.window[number]].cumsum(0)
        after = self.level[stack.touched] - drop
        ends = np.flatnonzero((after >= self.room.least[stack.touched]).all(1) & self._rounded(stack, after))
        if not ends.size:
            return None
        shrunk, used = self._shrunk(local, drop[ends]), np.zeros(ends.size)
        for kind, target in self.targets.items():
            left = self.left[kind] - shrunk @ self.costs.coefficients[kind][local.terms]
            used = np.maximum(used, np.where(left > target + 1e-6, np.inf, left / max(target, 1.0)))
        holds = np.flatnonzero(np.isfinite(used))
        return (int(ends[holds[0]]) + 1, float(used[holds[0]])) if holds.size else None


def _period(stack: Stack, room: Room) -> int:
    """So many units apart, at most, the widths that a stack takes from are multiples of their steps."""
    found, constant = 1, bool((stack.drop == stack.drop[0]).all())
    for step, drop in zip(room.step[stack.touched].tolist(), stack.drop[0].astype(np.int64).tolist(), strict=True):
        found = math.lcm(found, step // math.gcd(step, drop) if constant else step**2)
    return min(found, len(stack.units))


@dataclass(frozen=True)
class _Local:
    """The terms that a stack changes, and for each of their factors the column of its drops, from 1; 0 where it takes nothing."""

    terms: Ints
    columns: Ints

    @classmethod
    def of(cls, stack: Stack, costs: WidthCost) -> _Local:
        column = np.zeros(len(costs.sets), np.int64)
        inside = np.flatnonzero((stack.touched < len(costs.sets)) & (stack.touched > 0))
        column[stack.touched[inside]] = inside + 1
        columns = column[costs.factors]
        terms = np.flatnonzero(columns.any(1))
        return cls(terms, columns[terms])


def _sharing(local: Sequence[_Local], terms: int) -> list[set[int]]:
    """For each stack, the stacks that share a term with it, itself among them."""
    owners: list[list[int]] = [[] for _ in range(terms)]
    for number, found in enumerate(local):
        for term in found.terms.tolist():
            owners[term].append(number)
    return [{number}.union(*(owners[term] for term in found.terms.tolist())) for number, found in enumerate(local)]
