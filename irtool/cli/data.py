"""The data options, and what the model says about the data that it takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from irtool.cli.models import ModelSpec
from irtool.cli.screen import Screen
from irtool.errors import IrtoolError, OptionError
from irtool.train import Data, load_data

TRACE_BATCH = 2
"""Samples in the example: with one alone `torch.export` takes the batch for a constant."""


@dataclass(frozen=True)
class DataOptions:
    """`--data` and its company, as given."""

    source: str | None = None
    mean: str | None = None
    std: str | None = None
    limit: int | None = None
    image_size: int | None = None

    def load(self, model: str, screen: Screen) -> Data | None:
        """The dataset, with as many channels as the model's first convolution reads; None if none is asked for.

        Raises:
            DataError: missing, empty, damaged.
            OptionError: a mean, std, limit or size that can never work.
        """
        if self.source is None:
            return None
        mean, std = _numbers(self.mean, "--mean"), _numbers(self.std, "--std")
        channels = len(mean or std or ()) or _channels(model)
        return load_data(self.source, mean=mean, std=std, limit=self.limit, image_size=self.image_size, channels=channels, progress=screen)

    def record(self) -> dict[str, Any]:
        """For report.json."""
        return {"data": self.source, "limit": self.limit, "image_size": self.image_size}


def example_shapes(data: Data | None, given: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The shapes to trace with: those given, else the data's."""
    return given if given or data is None else [(TRACE_BATCH, *data.preprocessing.input_shape)]


def _channels(model: str) -> int | None:
    """1 or 3, if the model's first convolution takes so many; None if it cannot be told."""
    if Path(model).exists() and not model.endswith(".py"):
        return None
    try:
        module = ModelSpec.parse(model).build()
    except IrtoolError:
        return None  # building it for tracing will say what is wrong
    first = next((child for child in module.modules() if isinstance(child, nn.Conv1d | nn.Conv2d | nn.Conv3d)), None)
    return first.in_channels if first is not None and first.in_channels in (1, 3) else None


def _numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        found = tuple(float(part) for part in text.replace("(", "").replace(")", "").split(","))
    except ValueError:
        found = ()
    if len(found) not in (1, 3):
        raise OptionError(f"cannot read {text!r}", where=option, remedy="Write three numbers (one for grey images): 0.4914,0.4822,0.4465.")
    return found
