"""Inputs that are no pictures: an array of them in a .npy file, as the model takes them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from irtool.errors import DataError, OptionError
from irtool.hosts.onnx.files.file import declared_shapes, read_description
from irtool.train import Preprocessing
from irtool.workflows.loading.models import Shape

_FEWEST = 2
"""Inputs: some calibrate, another one is scored."""


@dataclass(frozen=True)
class AsStored(Preprocessing):
    """Inputs that are prepared already.

    Args:
        shape: of one input, without the batch.
    """

    shape: tuple[int, ...] = ()

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> AsStored:
        """Describe inputs of a shape."""
        return cls((0.0,), (1.0,), (1, 1), 1, shape=shape)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return self.shape

    def normalise(self, images: Tensor) -> Tensor:
        """Return the inputs as they are."""
        return images

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {"stored": list(self.shape)}


def is_arrays(source: str | None) -> bool:
    """Whether this is a file of inputs."""
    return source is not None and source.endswith(".npy")


def read_arrays(source: str, limit: int | None = None) -> NDArray[Any]:
    """The inputs in a .npy file, one a row.

    Raises:
        DataError: it is missing, holds Python objects or no numbers, numbers that are not finite, or a single input.
    """
    try:
        found: NDArray[Any] = np.load(source, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        what = "no such file" if not Path(source).is_file() else "no array of numbers, or a truncated one"
        raise DataError(what, where=source, remedy="Write one with numpy.save: inputs as the model takes them, one a row.") from error
    if found.ndim < 2 or len(found) < _FEWEST or found.dtype.kind not in "fiub":
        raise DataError(
            f"an array of {found.dtype} {found.shape}",
            where=source,
            remedy="Give numbers, with the axis of the inputs first, and two inputs or more.",
        )
    held = np.array(found[:limit])
    if held.dtype.kind == "f" and not np.isfinite(held).all():
        raise DataError("holds values that are not finite", where=source, remedy="Look for NaN and infinity in it.")
    return held


def stored_inputs(source: str, limit: int | None = None) -> tuple[Tensor, AsStored]:
    """The inputs in a .npy file as a tensor, and what they are. Raises as `read_arrays`."""
    held = read_arrays(source, limit)
    return torch.from_numpy(held), AsStored.of(held.shape[1:])


def stored_shapes(file: Path, row: tuple[int, ...], fixed: Collection[str] = ()) -> list[Shape]:
    """The shapes to read an ONNX file with: the stored ones for the first input that takes them, free axes of others left to the file.

    Args:
        file: the .onnx file.
        row: the shape of one stored input.
        fixed: inputs that have a value and are none any more.

    Raises:
        OptionError: no input takes them.
    """
    shapes = {name: shape for name, shape in declared_shapes(read_description(file)).items() if name not in fixed}
    place = next((name for name, shape in shapes.items() if shape is not None and _fits(shape, row)), None)
    if place is None:
        told = ", ".join(f"{name} {'x'.join('N' if size is None else str(size) for size in shape or ())}" for name, shape in shapes.items())
        raise OptionError(
            f"no input takes arrays of {'x'.join(map(str, row))}: {told}", where=str(file), remedy="Store them as the model takes them."
        )
    return [(None, *row) if name == place else (None,) * len(shape or ()) for name, shape in shapes.items()]


def _fits(shape: tuple[int | None, ...], row: tuple[int, ...]) -> bool:
    return len(shape) == len(row) + 1 and all(size in (None, other) for size, other in zip(shape[1:], row, strict=True))
