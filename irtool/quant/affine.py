"""Affine quantisation: real = scale * (integer - zero point), as ONNX's QuantizeLinear and MNN define it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from irtool.errors import OptionError


@dataclass(frozen=True)
class Grid:
    """The integers that a tensor may take.

    Attributes:
        dtype: numpy's name of the stored type.
        low, high: the smallest and largest integer.
        symmetric: whether the zero point must be the middle. Real 0 is then in the middle, and a range is as wide on both sides.
    """

    dtype: str
    low: int
    high: int
    symmetric: bool = False

    @property
    def middle(self) -> int:
        """The zero point of a symmetric range."""
        return (self.low + self.high + 1) // 2


GRIDS = {
    ("uint8", False): Grid("uint8", 0, 255),
    ("uint8", True): Grid("uint8", 1, 255, symmetric=True),
    ("int8", False): Grid("int8", -128, 127),
    ("int8", True): Grid("int8", -127, 127, symmetric=True),
}


def grid(dtype: str, symmetric: bool = False) -> Grid:
    """The grid of an activation type.

    Raises:
        OptionError: neither "uint8" nor "int8".
    """
    if (dtype, symmetric) not in GRIDS:
        raise OptionError(f"activations={dtype!r}", where="quantise", remedy="Choose uint8 or int8.")
    return GRIDS[dtype, symmetric]


@dataclass(frozen=True)
class Affine:
    """Quantisation of one tensor.

    Attributes:
        scale: the size of one step, a float32 value greater than zero.
        zero_point: the integer that stands for 0.
        grid: the integers.
    """

    scale: float
    zero_point: int
    grid: Grid

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and largest real number that has an integer."""
        return self.scale * (self.grid.low - self.zero_point), self.scale * (self.grid.high - self.zero_point)

    def quantise(self, values: NDArray) -> NDArray:
        """Real numbers to integers of the grid's dtype: rounded half to even, clipped."""
        rounded = np.rint(np.asarray(values, np.float64) / self.scale) + self.zero_point
        return np.clip(rounded, self.grid.low, self.grid.high).astype(self.grid.dtype)

    def dequantise(self, integers: NDArray) -> NDArray[np.float64]:
        """Integers to the real numbers that they stand for."""
        return (np.asarray(integers, np.float64) - self.zero_point) * self.scale

    def rounded(self, values: NDArray) -> NDArray[np.float64]:
        """Round real numbers as storing them as integers does."""
        return self.dequantise(self.quantise(values))


def affine(low: float, high: float, on: Grid) -> Affine:
    """The affine map of a range. The range is widened to hold 0, so that zero padding and ReLU are exact.

    A range of no width gets the scale 1.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if on.symmetric:
        scale = _scale(max(-low, high), on.high - on.middle)
        return Affine(scale, on.middle, on)
    scale = _scale(high - low, on.high - on.low)
    return Affine(scale, int(np.clip(np.rint(on.low - low / scale), on.low, on.high)), on)


def _scale(width: float, steps: int) -> float:
    scale = float(np.float32(width / steps))
    return scale if np.isfinite(scale) and scale > np.finfo(np.float32).tiny else 1.0
