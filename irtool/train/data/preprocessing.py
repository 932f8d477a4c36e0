"""Preprocessing: from a picture to a network's input. One value, stored with the model, used by calibration and by C++."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from irtool.errors import DataError

LARGEST_SIDE = 8192
"""Pixels: an image of that side is 200 MB, and its float32 input four times that."""


@dataclass(frozen=True)
class Preprocessing:
    """Resize and centre-crop to `size`, then `(pixel / 255 - mean) / std` for each channel.

    Args:
        mean: one number a channel, on the scale where black is 0 and white is 1, in `color_order`.
        std: likewise, and greater than zero.
        size: (height, width) in pixels.
        channels: 1 (grey) or 3 (colour).
        color_order: the order of the channels in the input *and* in `mean` and `std`: always "RGB" here. (A published
            config lists one of them in RGB and the other in BGR order; nothing in irtool may.)

    Raises:
        DataError: the lengths disagree, a mean is not a number, or a std is not positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    channels: int = 3
    color_order: str = "RGB"

    def __post_init__(self) -> None:
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise DataError(
                f"{len(self.mean)} means and {len(self.std)} stds for {self.channels} channels",
                where="preprocessing",
                remedy="Give one mean and one std a channel, in RGB order.",
            )
        if not all(1 <= side <= LARGEST_SIDE for side in self.size):
            raise DataError(f"size {self.size}", where="preprocessing", remedy=f"Give height and width from 1 to {LARGEST_SIDE:,} pixels.")
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)):
            raise DataError(f"mean {self.mean}, std {self.std}", where="preprocessing", remedy="Give finite numbers.")
        if any(not value > 0 for value in self.std):
            raise DataError(f"std {self.std} is not positive", where="preprocessing", remedy="Give stds greater than 0.")
        if self.color_order != "RGB":
            raise DataError(f"color order {self.color_order!r}", where="preprocessing", remedy='Only "RGB" is supported.')

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(channels, height, width) of one input."""
        return (self.channels, *self.size)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 pixels (N, C, H, W) to float32 of the same shape, on the same device.

        Written as `(pixel - 255 mean) * (1 / (255 std))`, the form of MNN's image processing, so that C++ rounds alike.
        """
        shape = (1, self.channels, 1, 1)
        mean = torch.tensor(self.mean, dtype=torch.float32, device=images.device).mul_(255).view(shape)
        scale = torch.tensor(self.std, dtype=torch.float32, device=images.device).mul_(255).reciprocal_().view(shape)
        return images.to(torch.float32).sub_(mean).mul_(scale)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        plain = asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`.

        Raises:
            DataError: a key is missing or of the wrong kind.
        """
        try:
            height, width = values["size"]
            return cls(
                mean=tuple(float(value) for value in values["mean"]),
                std=tuple(float(value) for value in values["std"]),
                size=(int(height), int(width)),
                channels=int(values["channels"]),
                color_order=str(values.get("color_order", "RGB")),
            )
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise DataError(
                f"not a preprocessing record ({error})",
                where="preprocessing",
                remedy='Expected keys "mean", "std", "size", "channels" as written by to_dict().',
            ) from error
