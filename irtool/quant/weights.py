"""Scales of weights: symmetric, one for each output channel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from irtool.errors import OptionError

ROUNDS = 20
"""Most rounds of alternation; most channels stand still after five."""


def steps_of(bits: int) -> int:
    """The largest integer of a symmetric weight: 127 for 8 bits.

    Raises:
        OptionError: not 2 to 8 bits.
    """
    if bits not in range(2, 9):
        raise OptionError(f"weight_bits={bits}", where="quantise", remedy="Choose 2 to 8.")
    return 2 ** (bits - 1) - 1


def largest(rows: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    """The scales (C,) that keep each row's largest magnitude; a row of zeros gets 1."""
    reach = np.abs(rows).max(axis=1)
    return np.where(reach > 0, reach / steps, 1.0)


def alternated(rows: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    """The scales (C,) that minimise each row's squared error, by alternation.

    For a fixed scale the best integers are the rounded ones; for fixed integers q the best scale is <w, q> / <q, q>. This is
    the projection step of ADMM in Leng et al. (2018, arXiv:1707.09870), section 3.2. It starts from several shares of the
    largest magnitude, since it ends in the nearest local minimum, and keeps the best.
    """
    best = largest(rows, steps)
    least = _error(rows, best, steps)
    for share in (1.0, 0.9, 0.8, 0.7, 0.6):
        scales = share * largest(rows, steps)
        for _ in range(ROUNDS):
            integers = integers_of(rows, scales, steps).astype(np.float64)
            power = (integers**2).sum(axis=1)
            updated = np.where(power > 0, (rows * integers).sum(axis=1) / np.maximum(power, 1), scales)
            updated = np.where(updated > 0, updated, scales)
            if np.allclose(updated, scales, rtol=1e-9, atol=0):
                break
            scales = updated
        error = _error(rows, scales, steps)
        best, least = np.where(error < least, scales, best), np.minimum(error, least)
    return best


def counted_from_least(rows: NDArray[np.float64], bits: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The least value and the scale (C,) of rows whose integers count up from 0 at the least value to 2**bits - 1 at the largest.

    A row whose values are all the same gets scale 1.
    """
    least, reach = rows.min(axis=1), np.ptp(rows, axis=1)
    return least, np.where(reach > 0, reach / (2**bits - 1), 1.0)


def integers_of(rows: NDArray[np.float64], scales: NDArray[np.float64], steps: int) -> NDArray[np.int8]:
    """Rows (C, K) in integers, rounded half to even and clipped."""
    return np.clip(np.rint(rows / scales[:, None]), -steps, steps).astype(np.int8)


def _error(rows: NDArray[np.float64], scales: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    return ((rows - integers_of(rows, scales, steps) * scales[:, None]) ** 2).sum(axis=1)


METHODS: dict[str, Callable[[NDArray[np.float64], int], NDArray[np.float64]]] = {"max": largest, "admm": alternated}


def channel_scales(rows: NDArray, method: str = "max", bits: int = 8) -> NDArray[np.float32]:
    """One scale a row.

    Args:
        rows: the weight as (output channels, everything else).
        method: `max` keeps the largest magnitude; `admm` minimises the squared error.
        bits: 2 to 8.

    Raises:
        OptionError: another method or number of bits.
    """
    if method not in METHODS:
        raise OptionError(f"weights={method!r}", where="quantise", remedy=f"Choose one of {', '.join(METHODS)}.")
    scales = METHODS[method](np.asarray(rows, np.float64), steps_of(bits)).astype(np.float32)
    return np.where(scales > np.finfo(np.float32).tiny, scales, np.float32(1))
