"""Allocation by measured losses: an integer program chooses how many channels of each family go.

Its variables choose one level of each family. Losses are taken to add up. Costs are products of two widths, so that each pair of families
whose widths meet has a table of its own: `y_ij` is 1 where the one is at level i and the other at level j, and sums to `x_i` and to `x_j`.
Networks are nearly chains of such pairs, for which this form leaves little to branch on. HiGHS solves it, through scipy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from irtool.analysis.width_cost import Floats, WidthCost
from irtool.errors import PlanError
from irtool.pruning.allocation.greedy import Outcome, finished
from irtool.pruning.allocation.sensitivity import Curve
from irtool.pruning.allocation.stacks import Room, Stack

MOST = 60_000
"""Entries of all tables together that HiGHS is given."""
_SECONDS, _GAP = 60.0, 1e-3


def allocate_measured(
    stacks: Sequence[Stack], room: Room, costs: WidthCost, targets: Mapping[str, float], curves: Sequence[Curve]
) -> Outcome:
    """Choose the levels that lose least and keep to the targets, then give back and exchange single units as the greedy allocation does.

    Args:
        stacks, room, costs, targets: as for `allocate`.
        curves: what each stack loses.

    Raises:
        PlanError: there are too many pairs of families, or HiGHS finds nothing in time.
    """
    program = _Program(stacks, room, costs, targets, curves)
    counts = program.solved()
    return finished(stacks, room, costs, targets, counts)


class _Program:
    def __init__(
        self, stacks: Sequence[Stack], room: Room, costs: WidthCost, targets: Mapping[str, float], curves: Sequence[Curve]
    ) -> None:
        self.stacks, self.room, self.costs, self.targets, self.curves = stacks, room, costs, targets, curves
        self.levels = [len(curve.units) for curve in curves]
        self.start = np.cumsum([0, *self.levels])
        self.drops = [_dropped(stack, curve) for stack, curve in zip(stacks, curves, strict=True)]
        owners: dict[int, list[int]] = {}
        for number, stack in enumerate(stacks):
            for row in stack.touched.tolist():
                owners.setdefault(row, []).append(number)
        self.owners = owners
        self.pairs: dict[tuple[int, int], dict[str, Floats]] = {}
        self.single = {kind: np.zeros(self.start[-1]) for kind in targets}
        self.constant = {kind: costs.constant[kind] for kind in targets}
        for term in range(len(costs.factors)):
            self._add(term)

    def _add(self, term: int) -> None:
        """Write one product of widths as a constant, what each family takes from it, and what each pair does."""
        factors = [int(row) for row in self.costs.factors[term] if row]
        whole = [float(self.room.level[row]) for row in factors]
        weights = {kind: float(self.costs.coefficients[kind][term]) for kind in self.targets}
        taken = [{number: self._of(number, row) for number in self.owners.get(row, ())} for row in factors]
        for kind, weight in weights.items():
            self.constant[kind] += weight * float(np.prod(whole))
        for place, families in enumerate(taken):
            rest = float(np.prod(whole[:place] + whole[place + 1 :]))
            for number, drop in families.items():
                self._single(number, -rest * drop, weights)
        for first in range(len(taken)):
            for second in range(first + 1, len(taken)):  # products of three and more are rare, and their last part is left out
                rest = float(np.prod([size for place, size in enumerate(whole) if place not in (first, second)]))
                for a, one in taken[first].items():
                    for b, other in taken[second].items():
                        self._pair(a, b, rest * np.outer(one, other), weights)

    def _of(self, number: int, row: int) -> Floats:
        """Return the number of channels that each level of a family takes from a row."""
        found: Floats = self.drops[number][:, int(np.flatnonzero(self.stacks[number].touched == row)[0])]
        return found

    def _single(self, number: int, table: Floats, weights: Mapping[str, float]) -> None:
        for kind, weight in weights.items():
            self.single[kind][self.start[number] : self.start[number + 1]] += weight * table

    def _pair(self, a: int, b: int, table: Floats, weights: Mapping[str, float]) -> None:
        if a == b:
            self._single(a, np.diag(table).copy(), weights)
            return
        if a > b:
            a, b, table = b, a, table.T
        held = self.pairs.setdefault((a, b), {kind: np.zeros(table.shape) for kind in self.targets})
        for kind, weight in weights.items():
            held[kind] += weight * table

    def solved(self) -> list[int]:
        """Choose how many units of each stack go."""
        count = int(self.start[-1])
        sizes = [self.levels[a] * self.levels[b] for a, b in self.pairs]
        if sum(sizes) > MOST:
            remedy = "Choose allocator='greedy'."
            raise PlanError(f"{len(self.pairs)} pairs of families are too many to choose for together", where="allocator", remedy=remedy)
        width = count + sum(sizes)
        cost = np.concatenate([np.concatenate([curve.loss for curve in self.curves]), np.zeros(sum(sizes))])
        integral = np.concatenate([np.ones(count), np.zeros(sum(sizes))])
        found = milp(
            cost,
            constraints=[self._one_level(width), *self._tables(width, count, sizes), self._budget(width), *self._rows(width)],
            bounds=Bounds(0, 1),
            integrality=integral,
            options={"time_limit": _SECONDS, "mip_rel_gap": _GAP},
        )
        if found.x is None:
            what = "no choice of the measured levels keeps to the budget" if found.status == 2 else "HiGHS found no choice in time"
            raise PlanError(what, where="allocator", remedy="Choose allocator='greedy', which goes channel by channel.")
        chosen = [int(found.x[a:b].argmax()) for a, b in zip(self.start[:-1], self.start[1:], strict=True)]
        return [int(curve.units[level]) for curve, level in zip(self.curves, chosen, strict=True)]

    def _one_level(self, width: int) -> LinearConstraint:
        rows = np.repeat(np.arange(len(self.levels)), self.levels)
        matrix = csr_array((np.ones(rows.size), (rows, np.arange(rows.size))), shape=(len(self.levels), width))
        return LinearConstraint(matrix, 1, 1)

    def _tables(self, width: int, first: int, sizes: Sequence[int]) -> list[LinearConstraint]:
        """A table's rows sum to the levels of one family, its columns to those of the other."""
        rows, columns, values, row = list[int](), list[int](), list[float](), 0
        for (a, b), size in zip(self.pairs, sizes, strict=True):
            entry = first + np.arange(size).reshape(self.levels[a], self.levels[b])
            for number, table in ((a, entry), (b, entry.T)):
                for level, some in enumerate(table):
                    rows += [row] * (len(some) + 1)
                    columns += [*some.tolist(), int(self.start[number]) + level]
                    values += [*[1.0] * len(some), -1.0]
                    row += 1
            first += size
        return [LinearConstraint(csr_array((values, (rows, columns)), shape=(row, width)), 0, 0)] if row else []

    def _budget(self, width: int) -> LinearConstraint:
        tables = {kind: np.concatenate([self.single[kind], *(held[kind].ravel() for held in self.pairs.values())]) for kind in self.targets}
        matrix = np.stack([tables[kind] / max(self.targets[kind], 1.0) for kind in self.targets])
        most = np.array([(self.targets[kind] - self.constant[kind]) / max(self.targets[kind], 1.0) for kind in self.targets])
        assert matrix.shape[1] == width
        return LinearConstraint(matrix, -np.inf, most)

    def _rows(self, width: int) -> list[LinearConstraint]:
        """Bound rows that several families take channels from, so that each keeps its minimum."""
        shared = [(row, owners) for row, owners in self.owners.items() if len(owners) > 1]
        if not shared:
            return []
        matrix, most = np.zeros((len(shared), width)), np.zeros(len(shared))
        for place, (row, owners) in enumerate(shared):
            most[place] = self.room.level[row] - self.room.least[row]
            for number in owners:
                matrix[place, self.start[number] : self.start[number + 1]] = self._of(number, row)
        return [LinearConstraint(csr_array(matrix), -np.inf, most)]


def _dropped(stack: Stack, curve: Curve) -> NDArray[np.float64]:
    """Return the number of channels that each level takes from each row that a stack touches, shape (levels, touched)."""
    sums = np.concatenate([np.zeros((1, len(stack.touched))), stack.drop.cumsum(0)])
    found: NDArray[np.float64] = sums[curve.units]
    return found
