"""Rounding the weights of a layer together, so that their errors cancel in what the layer gives.

Rounding each weight to the nearest integer is best for the weights, not for their products with what the layer reads. Here one column
of the weight is rounded after the other, and what rounding it adds to the output is made up for by the columns that are still real
numbers: each row w is led to an integer point near the minimum of (w - q) C (w - q)', where C is the covariance of what is read.

After Hassibi and Stork (1993, "Optimal brain surgeon") and Frantar et al. (2023, arXiv:2210.17323), in numpy and for groups side by side.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]
DAMPING = 1e-2
"""Fraction of the mean of the diagonal that is added to it: what few images say of rare directions is not believed."""
BLOCK = 128
"""Columns that are rounded before the others are told."""


def rounded_together(
    blocks: Reals, moment: Reals, scales: Reals, bounds: tuple[int, int], pinned: NDArray[np.bool_] | None = None
) -> Reals:
    """Round a weight to integers column by column.

    Args:
        blocks: the weight as a matrix for each group, (groups, outputs, inputs).
        moment: what is read, as a second moment for each group, (groups, inputs, inputs): positive semi-definite.
        scales: of each output, (groups, outputs).
        bounds: the least and the largest integer.
        pinned: where the nearest integer is to be taken, whatever the other columns do, of the shape of `blocks`; None for nowhere.

    Returns:
        Whole numbers within the bounds, of the shape of `blocks`.
    """
    groups, _, inputs = blocks.shape
    order = np.argsort(-np.diagonal(moment, axis1=1, axis2=2).mean(0), kind="stable")  # what is read most is rounded first
    left, found = blocks[:, :, order].astype(np.float64), np.empty_like(blocks)
    factor = _factor(moment[:, order][:, :, order])
    whole, nearest = np.empty_like(left), np.clip(np.rint(left / scales[:, :, None]), *bounds)
    free = np.ones(left.shape, bool) if pinned is None else ~pinned[:, :, order]
    for start in range(0, inputs, BLOCK):
        stop = min(start + BLOCK, inputs)
        errors = np.empty((groups, left.shape[1], stop - start))
        for column in range(start, stop):
            rounded = np.clip(np.rint(left[:, :, column] / scales), *bounds)
            whole[:, :, column] = np.where(free[:, :, column], rounded, nearest[:, :, column])
            error = (left[:, :, column] - whole[:, :, column] * scales) / factor[:, column, column][:, None]
            left[:, :, column:stop] -= error[:, :, None] * factor[:, None, column, column:stop]
            errors[:, :, column - start] = error
        left[:, :, stop:] -= errors @ factor[:, start:stop, stop:]
    found[:, :, order] = whole
    return found


def _factor(moment: Reals) -> Reals:
    """The upper triangular U with U' U = (moment + damping)^-1."""
    size = moment.shape[1]
    damping = np.maximum(DAMPING * np.trace(moment, axis1=1, axis2=2) / size, np.finfo(np.float32).tiny)
    inverse = np.linalg.inv(moment + damping[:, None, None] * np.eye(size))
    lower = np.linalg.cholesky((inverse + inverse.transpose(0, 2, 1)) / 2)
    return lower.transpose(0, 2, 1).astype(np.float64, copy=False)


def output_error(difference: Reals, moment: Reals) -> float:
    """The squared error that a difference of weights makes in the outputs: the sum over rows of d C d'.

    Args:
        difference: (groups, outputs, inputs).
        moment: (groups, inputs, inputs).
    """
    return float(np.einsum("goi,goi->", difference @ moment, difference))
