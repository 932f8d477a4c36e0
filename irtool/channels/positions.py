"""Axes that number channels and places at once: pixels after a pixel shuffle, heads that were folded into the batch.

A label says which channel an entry is, not where it lies. Along such an axis the place is in the index, and what slicing deals
out anew (a pixel shuffle of fewer channels puts others at each place of a pixel) has the right labels at wrong places.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def mixed_axes(labels: Ints) -> list[int]:
    """The axes along which a channel comes again after others came. Where its entries are neighbours (a flatten) it is one block.

    >>> mixed_axes(np.array([[0, 1, 0, 1], [2, 3, 2, 3]]))
    [1]
    >>> mixed_axes(np.array([[0, 0, 1, 1]]))
    []
    """
    found = []
    for axis, size in enumerate(labels.shape):
        if size > 2:
            rows = np.moveaxis(labels, axis, -1).reshape(-1, size)
            rows = np.where(rows < 0, -1 - np.arange(size), rows)  # what is no channel is no repetition either
            if (_changes(rows) > _changes(np.sort(rows, 1))).any():
                found.append(axis)
    return found


def _changes(rows: Ints) -> Ints:
    changes: Ints = (rows[:, 1:] != rows[:, :-1]).sum(1)
    return changes


def misplaced(before: Ints, after: Ints, stays: NDArray[np.bool_]) -> bool:
    """Whether slicing moved a channel along a mixed axis: each index that keeps any must hold some of those that it held.

    Args:
        before: a value's labels, and `after` those that it has once sliced, of the same rank.
        stays: whether each entry of the value stays, of the same rank, broadcast along axes that make no difference.
    """
    base = int(before.max()) + 2
    for axis in mixed_axes(before):
        left = np.flatnonzero(stays.any(tuple(other for other in range(before.ndim) if other != axis)))
        if after.shape[axis] not in (1, left.size):
            return True
        shape = [left.size if other == axis else 1 for other in range(before.ndim)]
        index = np.arange(left.size).reshape(shape) * base + 1
        if not np.isin(after + index, np.take(before, left, axis) + index).all():
            return True
    return False


def alike_in_place(labels: Ints) -> tuple[Ints, Ints]:
    """Pairs of labels that lie at one index of the axes that are not mixed: if these go together, no place is dealt out anew."""
    mixed = mixed_axes(labels)
    rows = np.moveaxis(labels, mixed, range(len(mixed))).reshape(int(np.prod([labels.shape[axis] for axis in mixed])), -1)
    return np.broadcast_to(rows[:1], rows[1:].shape).reshape(-1), rows[1:].reshape(-1)
