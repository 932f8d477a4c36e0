"""From what calibration saw of a tensor to the range that its integers cover. One function a criterion, in one table."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from irtool.errors import DataError, OptionError
from irtool.quant.affine import Affine, Grid, affine
from irtool.quant.statistics import Statistics

Range = tuple[float, float]
PERCENTILE = 99.99
"""Percentage of the values on each side that the percentile observer keeps inside the range."""
CANDIDATES = 100
"""Ends of a range that the MSE observer tries on each side."""
KL_BINS = 2048
"""Bins of the magnitudes that the KL observer compares."""


def min_max(stats: Statistics, _on: Grid) -> Range:
    """All that was seen."""
    return stats.low, stats.high


def moving_average(stats: Statistics, _on: Grid) -> Range:
    """The moving average of each batch's extremes: single outliers count for little."""
    return stats.moving


def percentile(stats: Statistics, _on: Grid, keep: float = PERCENTILE) -> Range:
    """All but the share of `100 - keep` per cent at each end that has values on both sides of 0 or only on that side."""
    cumulative = np.cumsum(stats.counts) / stats.total
    tail = (1 - keep / 100) / 2 if stats.low < 0 < stats.high else 1 - keep / 100
    edges = np.append(stats.centers - stats.radius / len(cumulative), stats.radius)
    low = edges[np.searchsorted(cumulative, tail, side="right")]
    high = edges[min(int(np.searchsorted(cumulative, 1 - tail, side="left")) + 1, len(edges) - 1)]
    return max(stats.low, float(low)), min(stats.high, float(high))


def mse(stats: Statistics, on: Grid) -> Range:
    """The range with the least mean squared error (the L2 criterion): each end is moved inwards as long as that helps.

    Squared error of rounding inside against squared error of clipping outside, over the histogram.
    """
    used = stats.counts > 0
    centers, weights = stats.centers[used], stats.counts[used].astype(np.float64)
    shares = np.linspace(1 / CANDIDATES, 1.0, CANDIDATES)

    def best(ranges: list[Range]) -> Range:
        errors = [_squared_error(centers, weights, affine(*ends, on)) for ends in ranges]
        return ranges[int(np.argmin(errors))]

    if on.symmetric:
        reach = max(-stats.low, stats.high)
        return best([(-reach * share, reach * share) for share in shares])
    low, high = min(stats.low, 0.0), max(stats.high, 0.0)
    for _ in range(2):
        low, high = best([(low, stats.high * share) for share in shares] if stats.high > 0 else [(low, high)])
        low, high = best([(stats.low * share, high) for share in shares] if stats.low < 0 else [(low, high)])
    return low, high


def _squared_error(centers: NDArray[np.float64], weights: NDArray[np.float64], to: Affine) -> float:
    steps = np.clip(np.rint(centers / to.scale), to.grid.low - to.zero_point, to.grid.high - to.zero_point)
    return float(weights @ (centers - steps * to.scale) ** 2)


def kl(stats: Statistics, on: Grid) -> Range:
    """The range whose quantised distribution of magnitudes is nearest the true one in Kullback-Leibler divergence.

    After Migacz, "8-bit inference with TensorRT" (GTC 2017): what lies beyond a candidate end is counted at the end; the
    rest is merged into as many levels as there are integers and spread out again over the bins that were not empty.
    """
    magnitudes = _magnitudes(stats)
    two_sided = stats.low < 0 < stats.high
    levels = (on.high - on.low + 1) // (2 if two_sided or on.symmetric else 1)
    filled = np.flatnonzero(magnitudes)  # by the counts and not by the largest value, which may lie on the edge of its bin
    used = max(levels, int(filled[-1]) + 1) if filled.size else levels
    ends = np.unique(np.append(np.arange(levels, used, max(1, levels // 16)), used))
    divergences = [_divergence(magnitudes, int(end), levels) for end in ends]
    reach = stats.radius * float(ends[int(np.argmin(divergences))]) / KL_BINS
    return max(stats.low, -reach), min(stats.high, reach)


def _magnitudes(stats: Statistics) -> NDArray[np.float64]:
    """Counts over KL_BINS equal bins from 0 to the radius, without the zeros that a ReLU makes."""
    half = len(stats.counts) // 2
    both = stats.counts[half:] + stats.counts[:half][::-1]
    merged = both.reshape(KL_BINS, -1).sum(axis=1).astype(np.float64)
    merged[0] = merged[1]  # a ReLU's zeros would outweigh all else, and every range has a level for them
    return merged


def _divergence(magnitudes: NDArray[np.float64], end: int, levels: int) -> float:
    reference = magnitudes[:end].copy()
    filled = reference > 0
    reference[-1] += magnitudes[end:].sum()
    starts = (np.arange(levels) * end) // levels
    sums, present = np.add.reduceat(magnitudes[:end], starts), np.add.reduceat(filled.astype(float), starts)
    level = np.repeat(np.divide(sums, present, out=np.zeros(levels), where=present > 0), np.diff(np.append(starts, end)))
    candidate = np.where(filled, level, 0.0)
    if not candidate.any():
        return np.inf
    p, q = reference / reference.sum(), candidate / candidate.sum()
    q = np.where((p > 0) & (q == 0), 1e-12, q)
    inside = p > 0
    return float(np.sum(p[inside] * np.log(p[inside] / q[inside])))


METHODS: dict[str, Callable[[Statistics, Grid], Range]] = {
    "minmax": min_max,
    "percentile": percentile,
    "moving_average": moving_average,
    "mse": mse,
    "kl": kl,
}


def observe(stats: Statistics, method: str, on: Grid) -> Affine:
    """The affine map that a method chooses for a tensor.

    Raises:
        OptionError: no such method.
        DataError: the tensor was never seen.
    """
    if method not in METHODS:
        raise OptionError(f"method={method!r}", where="quantise", remedy=f"Choose one of {', '.join(METHODS)}.")
    if not stats.total:
        raise DataError("no values were seen", where="calibration", remedy="Calibrate with at least one image.")
    return affine(*METHODS[method](stats, on), on)
