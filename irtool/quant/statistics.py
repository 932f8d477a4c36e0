"""Statistics of a tensor during calibration: a fixed number of counts, whatever the number of images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from irtool.errors import DataError

BINS = 8192
"""Of the histogram. Its width doubles when a larger value comes, so at least half of the bins on one side are in use."""
MOMENTUM = 0.9
"""Of the moving average of each batch's extremes, as in Jacob et al. (2018, arXiv:1712.05877), section 3.1."""


class Statistics:
    """Extremes, their moving average, a histogram, and the mean of each channel (axis 1).

    Attributes:
        low, high: the extremes over all values.
        moving: the moving average of the extremes of each batch.
        counts: int64 (BINS,), over equal bins from -radius to radius.
        radius: the end of the histogram; a power of two.
        total: how many values were seen.
    """

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self.moving = (0.0, 0.0)
        self.counts: NDArray[np.int64] = np.zeros(BINS, np.int64)
        self.radius = 0.0
        self.total = 0
        self._sums: NDArray[np.float64] | None = None
        self._each = 0

    def update(self, values: NDArray[np.floating]) -> None:
        """Take in one batch, axis 0 the images.

        Raises:
            DataError: a value is not finite.
        """
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise DataError(
                "a value is not finite", where="calibration", remedy="Check the model on the calibration images in float first."
            )
        first = self.total == 0
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.moving = (low, high) if first else (_moved(self.moving[0], low), _moved(self.moving[1], high))
        self._widen(max(abs(low), abs(high)))
        self.counts += np.bincount(self._bins(values.reshape(-1)), minlength=BINS)
        self.total += values.size
        if values.ndim > 1:
            sums = values.sum(axis=tuple(axis for axis in range(values.ndim) if axis != 1), dtype=np.float64)
            self._sums = sums if self._sums is None else self._sums + sums
            self._each += values.size // values.shape[1]

    @property
    def centers(self) -> NDArray[np.float64]:
        """The middle of each bin."""
        step = 2 * self.radius / BINS
        return np.asarray(-self.radius + step * (np.arange(BINS) + 0.5), np.float64)

    @property
    def means(self) -> NDArray[np.float64] | None:
        """The mean of each channel, float64 (C,); None for values without a channel axis."""
        return None if self._sums is None else self._sums / self._each

    def _bins(self, values: NDArray[np.floating]) -> NDArray[np.intp]:
        places = (values + np.asarray(self.radius, values.dtype)) * np.asarray(BINS / (2 * self.radius), values.dtype)
        return np.clip(places.astype(np.intp), 0, BINS - 1)

    def _widen(self, reach: float) -> None:
        if not self.radius:
            self.radius = 2.0 ** np.ceil(np.log2(max(reach, 1e-30)))
        while reach > self.radius:
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[BINS // 4 : 3 * BINS // 4] = pairs
            self.radius *= 2


def _moved(old: float, new: float) -> float:
    return MOMENTUM * old + (1 - MOMENTUM) * new
