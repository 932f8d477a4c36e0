"""Balance: rows of a table that must lose equally many channels (the groups of a grouped convolution, attention heads ...)."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Balance:
    """Groups that must be removed in equal shares.

    Attributes:
        cells: group numbers, sorted into cells by the rows they touch in every table.
        equal: shape (conditions, cells): `equal @ removed == 0` where removed[c] counts the groups taken from cell c.
        rows: shape (rows, cells): channels that a row loses for one group taken from each cell.
        room: shape (rows,): channels a row can lose at most if one is to stay.
        split: whether a table is of an axis that is split and laid out anew, so that what stays may come in another order.
    """

    cells: list[Ints]
    equal: Ints
    rows: Ints
    room: Ints
    split: bool = False

    @property
    def alike(self) -> bool:
        """Whether the conditions say no more and no less than that every cell gives equally many, as in a plain grouped convolution."""
        cells = len(self.cells)
        if cells == 1:
            return not self.equal.any()
        if not self.equal.size or ((self.equal != 0).sum(1) != 2).any() or self.equal.sum(1).any():
            return False
        first, second = np.argwhere(self.equal)[:, 1].reshape(-1, 2).T
        least = np.arange(cells)  # of the cells that each is tied to, as far as is known
        for _ in range(cells):
            np.minimum.at(least, second, least[first])
            np.minimum.at(least, first, least[second])
            if not least.any():
                return True
        return False


def sharing(tables: list[tuple]) -> list[list[tuple]]:
    """Tables that share a free group, together."""
    if not tables:
        return []
    count, groups = len(tables), np.concatenate([ids.ravel() for _, _, ids, *_ in tables])
    owners = np.repeat(np.arange(count), [ids.size for _, _, ids, *_ in tables])
    free = groups >= 0
    nodes = count + int(groups.max()) + 1
    links = coo_array((np.ones(free.sum()), (owners[free], count + groups[free])), shape=(nodes, nodes))
    component = connected_components(links, directed=False)[1][:count].tolist()
    return [[tables[index] for index in range(count) if component[index] == number] for number in dict.fromkeys(component)]


def balance_of(tables: list[Ints], labels: list[Ints], groups: list[Ints], relaid: list[bool]) -> Balance | None:
    """The conditions on a family of tables, in the order in which the graph meets them; None if a group sits unevenly.

    Each row of a table must lose equally many channels. Where a split axis is laid out anew, and its channels go on to a later
    table, its rows must also send equally many to each row there that they reach: a shuffle interleaves the rows, so a later
    split falls between the same channels only then. Channels that stay in their order need no such thing. `tables` holds free
    groups (else -1), `groups` all of them; `relaid` says which tables are of split axes.
    """
    by_rows = _cells(tables)
    cells = list(by_rows)
    loss = [np.zeros((ids.shape[0], len(cells)), np.int64) for ids in tables]
    for column, places in enumerate(cells):
        for number, row, many in places:
            loss[number][row, column] += many
    present = _incidence(groups) if len(tables) > 1 else []
    conditions = []
    for number, rows in enumerate(loss):
        conditions.append(rows[1:] - rows[:1])
        later = zip(loss[number + 1 :], present[number + 1 :], strict=True) if relaid[number] else ()
        for after, there in later:
            reached = (present[number] @ there.T).toarray() > 0
            conditions.append(_equal_where(rows[reached.any(1)], after.sum(0) > 0))
            conditions += [_equal_where(rows[reached[:, row]], after[row] > 0) for row in range(after.shape[0])]
    equal = np.unique(np.concatenate(conditions), axis=0) if len(tables) > 1 else conditions[0]
    everything = np.concatenate(loss)
    room = np.concatenate([_distinct_in_rows(table) for table in labels]) - 1
    return Balance(
        [np.array(sorted(found), np.int64) for found in by_rows.values()], equal[(equal != 0).any(1)], everything, room, any(relaid)
    )


def _distinct_in_rows(table: Ints) -> Ints:
    """Count the labels in each row of a table, repetitions and -1 aside."""
    ordered = np.sort(table, axis=1)
    changes = (ordered[:, 1:] != ordered[:, :-1]).sum(1)
    found: Ints = changes + (ordered[:, 0] >= 0)
    return found


def _cells(tables: list[Ints]) -> dict[tuple[tuple[int, int, int], ...], list[int]]:
    """Groups by where they sit: a (table, row, how many there) for each row that has the group."""
    if len(tables) == 1 and bool((np.diff(np.sort(tables[0], axis=None)) > 0).all()) and tables[0].min() >= 0:
        return {((0, row, 1),): groups for row, groups in enumerate(tables[0].tolist())}  # every group sits in one place
    found: list[Ints] = []
    for number, ids in enumerate(tables):
        rows = np.broadcast_to(np.arange(ids.shape[0])[:, None], ids.shape)[ids >= 0]
        places, many = np.unique(rows * (int(ids.max()) + 1) + ids[ids >= 0], return_counts=True)
        row, group = np.divmod(places, int(ids.max()) + 1)
        found.append(np.stack([group, np.full_like(group, number), row, many], 1))
    touched: dict[int, tuple[tuple[int, int, int], ...]] = {}
    for group, *place in np.concatenate(found).tolist():
        touched[group] = (*touched.get(group, ()), tuple(place))
    by_rows: dict[tuple[tuple[int, int, int], ...], list[int]] = defaultdict(list)
    for group, places in touched.items():
        by_rows[places].append(group)
    return by_rows


def _incidence(tables: list[Ints]) -> list[csr_array]:
    """For each table, which rows have a member of which group, shape (rows, groups)."""
    width = max(int(ids.max()) for ids in tables) + 1
    found = []
    for ids in tables:
        rows, columns = (ids >= 0).nonzero()
        found.append(csr_array((np.ones(len(rows), np.int64), (rows, ids[rows, columns])), shape=(ids.shape[0], width)))
    return found


def _equal_where(rows: Ints, mask: NDArray[np.bool_]) -> Ints:
    """Conditions that all rows lose equally many in the masked cells."""
    masked: Ints = rows * mask
    return masked[1:] - masked[:1]
