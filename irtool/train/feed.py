"""Sources of a training loop's batches, and of what it is scored on: a dataset that irtool loaded, or a user's own loaders."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from irtool.errors import OptionError, TrainError
from irtool.progress import Progress
from irtool.train.batch import Batch
from irtool.train.data.dataset import Data
from irtool.train.data.loaders import Loaders, pairs
from irtool.train.data.split import Part, labels_of
from irtool.train.evaluate import Evaluation, evaluate, scored_labels
from irtool.train.settings import Settings


class Place(NamedTuple):
    """The place of a process: its number, of how many, and its device."""

    rank: int
    world: int
    device: torch.device


class Feed(Protocol):
    """The batches of a run.

    Attributes:
        steps: batches an epoch.
        batch: images a batch, in one process.
        classes: how many the data has; None where it does not say.
        scored: whether there is anything to score on.
    """

    steps: int
    batch: int
    classes: int | None
    scored: bool

    def facts(self) -> dict[str, Any]:
        """Plain values by which a resumed run knows its data again."""
        ...

    def epoch(self, number: int) -> Iterator[Batch]:
        """This process's share of each of an epoch's batches."""
        ...

    def score(self, module: nn.Module, progress: Progress, task: str) -> Evaluation:
        """This process's share of the scored images."""
        ...


class SplitFeed:
    """A dataset that irtool loaded: order and augmentation follow from seed and epoch alone.

    A last batch that is not full is left out (another part of the images each epoch), unless it is the only one.

    Raises:
        DataError: the test split cannot be scored.
        TrainError: there are fewer images than processes.
    """

    def __init__(self, data: Data, settings: Settings, place: Place) -> None:
        self._data, self._settings, self._place = data, settings, place
        self._labels = labels_of(data.train)
        self.classes: int | None = len(data.classes)
        self.scored = True
        self.batch = min(settings.batch_size, len(data.train) // place.world)
        self.steps = len(data.train) // max(1, self.batch * place.world)
        if not self.steps:
            raise TrainError(
                f"{len(data.train)} training images for {place.world} processes", remedy="Give more images or fewer processes."
            )
        self._augment = settings.augmentation(data.flip, data.preprocessing.size)

    def facts(self) -> dict[str, Any]:
        train, preprocessing = self._data.train, self._data.preprocessing
        return {
            "train_images": len(train),
            "input": list(preprocessing.input_shape),
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "labels": f"{zlib.crc32(self._labels.numpy().tobytes()):08x}",  # other images rarely have the same
        }

    def epoch(self, number: int) -> Iterator[Batch]:
        random = np.random.default_rng([self._settings.seed, number])
        order = torch.from_numpy(random.permutation(len(self._data.train)))
        rank, world, device = self._place
        whole, mine = self.batch * world, slice(self.batch * rank, self.batch * (rank + 1))
        indices = [order[step * whole : (step + 1) * whole][mine] for step in range(self.steps)]
        split, preprocessing = self._data.train, self._data.preprocessing
        for index, pixels in zip(indices, split.batches(indices), strict=True):
            draws = self._augment.draw(random, whole).part(mine)
            labels = self._labels[index].to(device, non_blocking=True)
            images = preprocessing.normalise(self._augment.apply(pixels.to(device, non_blocking=True), draws))
            images, targets = self._augment.mix(images, labels, len(split.classes), draws)
            yield Batch(images, labels, targets, index)

    def score(self, module: nn.Module, progress: Progress, task: str) -> Evaluation:
        split, (rank, world, _) = self._data.test, self._place
        if world > 1:
            split = Part(split, torch.arange(rank, len(split), world))
        return evaluate(module, split, progress=progress, task=task)


class LoaderFeed:
    """A user's own loaders, which choose order, batches and augmentation.

    They draw from torch's random numbers, which `fit` seeds anew for each epoch: a loader with a generator of its own
    is not repeated when a run is resumed.

    Raises:
        OptionError: a setting that only a dataset of irtool's obeys, or several processes.
    """

    def __init__(self, loaders: Loaders, settings: Settings, place: Place) -> None:
        if place.world > 1:
            raise OptionError("a DataLoader with several processes", remedy="Give load_data(...), which irtool divides among them.")
        usual = Settings()
        idle = [name for name in ("batch_size", "crop", "flip", "mixup") if getattr(settings, name) != getattr(usual, name)]
        if idle:
            raise OptionError(f"{', '.join(idle)} with a DataLoader", remedy="The loader makes the batches: say it there.")
        if settings.patience and loaders.test is None:
            raise OptionError("patience without anything to score", remedy="Give two loaders: (training, test).")
        self._loaders, self._device = loaders, place.device
        self.classes: int | None = None
        self.steps, self.batch, self.scored = loaders.steps, loaders.size, loaders.test is not None

    def facts(self) -> dict[str, Any]:
        return {"loader": True, "train_batches": self.steps, "batch": self.batch}

    def epoch(self, number: int) -> Iterator[Batch]:
        for images, labels in pairs(self._loaders.train):
            labels = labels.to(self._device, non_blocking=True)
            yield Batch(images.to(self._device, non_blocking=True), labels, labels, torch.full((len(labels),), -1))

    def score(self, module: nn.Module, progress: Progress, task: str) -> Evaluation:
        assert self._loaders.test is not None
        return evaluate(module, self._loaders.test, progress=progress, task=task)


def feed_of(data: Data | Loaders, settings: Settings, place: Place) -> Feed:
    """The batches of a run over some data."""
    return SplitFeed(data, settings, place) if isinstance(data, Data) else LoaderFeed(data, settings, place)


def check_scored(data: Data | Loaders) -> None:
    """Look at what will be scored at once, and not after the training.

    Raises:
        DataError: it has no images, or a label that is no class's.
    """
    if isinstance(data, Data):
        scored_labels(data.test)
