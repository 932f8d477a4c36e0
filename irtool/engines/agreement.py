"""Distance between two engines' numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from irtool.engines.session import TensorSpec


def relative_error(result: np.ndarray, reference: np.ndarray) -> float:
    """max|result - reference| / max|reference|, where infinities and NaNs agree only with their like.

    Outputs below 1e-3 are compared as if the largest were 1e-3, so that rounding around zero is no difference.
    """
    a, b = np.asarray(result, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    scale = max(1e-3, float(np.max(np.abs(b), initial=0.0, where=np.isfinite(b))))
    return float(np.max(np.nan_to_num(gap, nan=np.inf, posinf=np.inf), initial=0.0)) / scale


def row_error(result: np.ndarray, reference: np.ndarray) -> float:
    """Compute the error where rows (along the last axis but one) may come in another order: each row beside the one that is nearest to it.

    Rows of all leading axes are taken together. Results without rows, and those of more than `MOST_ROWS`, are compared as they stand.
    """
    if result.ndim < 2 or result.shape != reference.shape or not 0 < result[..., 0].size <= MOST_ROWS:
        return relative_error(result, reference)
    a, b = (np.asarray(array, dtype=np.float64).reshape(-1, array.shape[-1]) for array in (result, reference))
    scale = max(1e-3, float(np.abs(b[np.isfinite(b)]).max(initial=0.0)))
    gaps = np.stack([np.nan_to_num(np.abs(row - b).max(-1), nan=np.inf) for row in a])
    return float(max(gaps.min(0).max(), gaps.min(1).max())) / scale


MOST_ROWS = 4096
"""Rows that are compared with all others."""


def sample_inputs(specs: Sequence[TensorSpec], *, batch: int = 2, size: int = 64) -> list[np.ndarray]:
    """Arrays that fit the inputs: standard normal floats, zeros of other types, always the same.

    Args:
        specs: the inputs; an unknown rank counts as rank 1.
        batch: the size of a free axis 0.
        size: the size of every other free axis.
    """
    generator = np.random.default_rng(0)
    arrays = []
    for spec in specs:
        axes = (None,) if spec.shape is None else spec.shape
        shape = [((batch if axis == 0 else size) if n is None else n) for axis, n in enumerate(axes)]
        floats = spec.dtype.startswith("float")
        arrays.append(generator.standard_normal(shape).astype(spec.dtype) if floats else np.zeros(shape, spec.dtype))
    return arrays
