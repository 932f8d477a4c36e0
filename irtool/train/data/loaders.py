"""Batches that a user's own DataLoader makes, in place of a dataset that irtool loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from irtool.errors import DataError, OptionError
from irtool.train.data.dataset import Data

IMAGES = ("pixel_values", "images", "image", "img", "x", "input", "inputs")
LABELS = ("labels", "label", "targets", "target", "y")
"""Names of the parts of a batch where it is a dict (Hugging Face's collators, MONAI's, and others)."""


@dataclass(frozen=True)
class Loaders:
    """Data as a user's own loaders give it: already augmented and normalised, in their own order.

    Args:
        train: a DataLoader, or any iterable with a length whose items are batches: (images, labels), or a dict of them. It is read once an epoch.
        test: the same for what is scored; None: nothing is scored.

    Raises:
        OptionError: one of them has no length, or holds nothing.
    """

    train: Iterable[Any]
    test: Iterable[Any] | None = None

    def __post_init__(self) -> None:
        for name, loader in (("training", self.train), ("test", self.test)):
            if loader is not None:
                _length(loader, name)

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        return _length(self.train, "training")

    @property
    def size(self) -> int:
        """Images in a full batch; 0 where the loader does not say."""
        return int(getattr(self.train, "batch_size", None) or 0)

    def first(self, steps: int) -> Loaders:
        """The first batches of one pass over the training data, kept in memory, and nothing to score."""
        return Loaders(list(islice(iter(self.train), steps)))

    def sample(self, count: int) -> Tensor:
        """The first images of one pass over the training data: float32 (at most `count`, C, H, W)."""
        found: list[Tensor] = []
        for images, _ in pairs(self.train):
            found.append(images)
            if sum(map(len, found)) >= count:
                break
        return torch.cat(found)[:count]


def as_loaders(data: object) -> Data | Loaders:
    """Return the data of a training loop as one of the two kinds that it knows.

    Args:
        data: a `Data`; a DataLoader; or a pair of them, the second of which is scored.

    Raises:
        OptionError: it is none of these.
    """
    if isinstance(data, (Data, Loaders)):
        return data
    if isinstance(data, tuple) and len(data) == 2 and all(part is None or _is_loader(part) for part in data):
        return Loaders(*data)
    if _is_loader(data):
        return Loaders(data)  # type: ignore[arg-type]
    raise OptionError(
        f"a {type(data).__name__} is no data to train on",
        where="data",
        remedy="Give load_data(...), a DataLoader of (images, labels), or two of them: (training, test).",
    )


def only_data(data: object, why: str) -> Data:
    """Return the data, where a loader will not do.

    Raises:
        OptionError: it is a loader, or no data at all.
    """
    found = as_loaders(data)
    if not isinstance(found, Data):
        raise OptionError("a DataLoader will not do here", where="data", remedy=f"{why}: give irtool.train.load_data(...).")
    return found


def pairs(loader: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Each batch's images, float32 (N, C, H, W) or as the loader has them, and labels, int64 (N,).

    Raises:
        DataError: a batch is of another form, or its labels are no whole numbers.
    """
    for batch in loader:
        images, labels = _parts(batch)
        if images.dtype == torch.uint8:
            raise DataError("uint8 images", where="DataLoader", remedy="Normalise them in the loader: floats are what the model takes.")
        if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or len(labels) != len(images):
            kind = str(labels.dtype).removeprefix("torch.")
            raise DataError(
                f"{kind} labels of shape {tuple(labels.shape)} for {len(images)} images",
                where="DataLoader",
                remedy="Give each image the number of its class, as an integer.",
            )
        if len(labels) and int(labels.min()) < 0:
            raise DataError(f"label {int(labels.min())}", where="DataLoader", remedy="Number the classes from 0.")
        yield images, labels.long()


def _parts(batch: Any) -> tuple[Tensor, Tensor]:
    """Images and labels of one batch."""
    found: tuple[Any, Any] | None = None
    if isinstance(batch, Mapping):
        images, labels = (next((batch[name] for name in names if name in batch), None) for names in (IMAGES, LABELS))
        found = None if images is None or labels is None else (images, labels)
    elif isinstance(batch, (tuple, list)) and len(batch) >= 2:
        found = (batch[0], batch[1])
    if found is None or not all(isinstance(part, (Tensor, np.ndarray)) for part in found):
        shown = f"a dict of {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise DataError(
            f"a batch is {shown}", where="DataLoader", remedy="Let it give (images, labels), or a dict with pixel_values and labels."
        )
    return torch.as_tensor(found[0]), torch.as_tensor(found[1])


def _is_loader(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping, Tensor, np.ndarray, tuple))


def _length(loader: object, name: str) -> int:
    try:
        count = len(loader) if isinstance(loader, Sized) and not isinstance(loader, Iterator) else 0  # which can be read but once
    except TypeError:  # of a DataLoader over a stream
        count = 0
    if count < 1:
        raise OptionError(
            f"the {name} loader has no batches, or no length", where="data", remedy="Give one that len() takes: the schedule needs it."
        )
    return count
