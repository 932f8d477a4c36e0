"""Loading image classification data from wherever a user has it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from irtool.errors import DataError, OptionError
from irtool.progress import Progress, silent
from irtool.tensor_defaults import real_tensors
from irtool.train.data.augment import Augment
from irtool.train.data.image_files import FileTree, FolderTree, LabelledNames, ZipTree, arrange, decode
from irtool.train.data.preprocessing import Preprocessing
from irtool.train.data.sources import ArraySet, cifar, has_cifar, has_idx, idx, named_sets, torchvision_set
from irtool.train.data.split import MemorySplit, Split, StreamedSplit, decode_all
from irtool.train.settings import is_whole

TEST_SHARE = 0.2
"""Fraction that is held out for testing where a dataset has only one split."""
STATISTICS_SAMPLE = 2000
"""How many training images are decoded for the statistics of a dataset too large for memory."""
MEMORY_LIMIT = 1 << 30
"""Bytes of decoded pixels, both splits together, above which files are streamed."""
DIGITS_SIZE = 32


@dataclass(frozen=True)
class Data:
    """A dataset ready for the loops.

    Args:
        name: what it was loaded from, for reports.
        train: the training split.
        test: the test split (a deterministic, stratified 20 % of the images where the source has only one split).
        flip: whether a mirrored image keeps its class; augmentation obeys it.
        truth: what the labels are: given ones; a model's own answers, so that accuracy is agreement with it; or nothing.
    """

    name: str
    train: Split
    test: Split
    flip: bool = True
    truth: Literal["labels", "answers", "none"] = "labels"

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes

    @property
    def preprocessing(self) -> Preprocessing:
        return self.train.preprocessing

    def sample(self, count: int, seed: int = 0, augment: Augment | None = None) -> Tensor:
        """Normalised training images for calibration, float32 (min(count, N), C, H, W), spread evenly over the classes.

        Args:
            count: at most so many.
            seed: which images, and how they are augmented.
            augment: crop and mirror them, as training does (`Settings.augmentation`); by default they are as in use.

        Raises:
            OptionError: a count below 1.
        """
        if not is_whole(count, 1):
            raise OptionError(f"a sample of {count!r} images", remedy="Give a whole number of at least 1.")
        images = next(iter(self.train.batches([balanced(self.train.labels, count, seed)])))
        if augment is not None:
            images = augment.apply(images, augment.draw(np.random.default_rng(seed), len(images)))
        return self.preprocessing.normalise(images)


@real_tensors()
def load_data(
    source: str | os.PathLike[str],
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    limit: int | None = None,
    root: str | os.PathLike[str] | None = None,
    memory_limit: int = MEMORY_LIMIT,
    workers: int = 2,
    progress: Progress = silent,
) -> Data:
    """Load a dataset.

    Args:
        source: one of
            - a folder or a zip with `train/<class>/*.jpg` and `test/<class>/*.jpg` (or `val`), or only `<class>/*.jpg`,
              which is then split. A zip is read in place.
            - a folder with idx files (MNIST's layout, gzipped or not), or with CIFAR's binary files
            - `digits` (scikit-learn's, scaled to 32x32), or `CIFAR10`, `CIFAR100`, `MNIST`, `FashionMNIST` (torchvision's,
              downloaded if need be). A folder of such a name is written `./digits`.
        image_size: pixels, one number or (height, width). Default: that of the first image.
        channels: 1 or 3. Default: that of the first image.
        mean, std: see `Preprocessing`; default: computed from the training split.
        seed: for the split, where one is made, and for `limit`.
        limit: at most so many images in each split, spread evenly over the classes.
        root: where torchvision keeps its downloads.
        memory_limit: bytes of decoded pixels above which images are streamed from their files.
        workers: decoding threads.
        progress: told about decoding.

    Raises:
        DataError: missing, empty, damaged, or not downloadable; the message says which and what to do.
        OptionError: a number that can never work.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    wanted = _Wanted(size, channels, _numbers("mean", mean), _numbers("std", std), seed, limit, memory_limit, workers, progress)
    _check_wanted(wanted)
    name = os.fspath(source)
    builtin = named_sets(Path(root) if root else None).get(name.lower().replace("-", ""))
    if builtin is not None:
        if size is None and name.lower() == "digits":
            wanted = _Wanted(**{**vars(wanted), "size": (DIGITS_SIZE, DIGITS_SIZE)})
        return _from_arrays(name, builtin(), wanted)
    return _from_path(Path(name), wanted)


@dataclass(frozen=True)
class _Wanted:
    size: tuple[int, int] | None
    channels: int | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    seed: int
    limit: int | None
    memory_limit: int
    workers: int
    progress: Progress


def _check_wanted(wanted: _Wanted) -> None:
    size, channels, limit = wanted.size, wanted.channels, wanted.limit
    if size is not None and not (isinstance(size, (tuple, list)) and len(size) == 2 and all(is_whole(side, 1) for side in size)):
        raise OptionError(f"image size {size!r}", remedy="Give a size of at least 1 pixel, or (height, width).")
    if channels not in (None, 1, 3):
        raise OptionError(f"{channels} channels", remedy="Give 1 (grey) or 3 (colour).")
    if limit is not None and not is_whole(limit, 1):
        raise OptionError(f"limit {limit!r}", remedy="Give a limit of at least 1 image.")
    if not is_whole(wanted.seed, 0) or not is_whole(wanted.workers, 1):
        raise OptionError(f"seed {wanted.seed!r}, workers {wanted.workers!r}", remedy="Give whole numbers of at least 0 and 1.")


def _numbers(name: str, values: Iterable[float] | None) -> tuple[float, ...] | None:
    try:
        return None if values is None else tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise OptionError(f"{name} {values!r}", remedy="Give one number a channel: (0.5, 0.5, 0.5), say.") from error


def _from_path(path: Path, wanted: _Wanted) -> Data:
    if not path.exists():
        raise DataError(
            "no such folder, zip or dataset",
            where=str(path),
            remedy=f"Give a folder, a zip of one, or one of: {', '.join(named_sets())}.",
        )
    if path.is_file():
        return _from_files(path.stem, ZipTree(path), str(path), wanted)
    if not path.is_dir():  # a pipe would be waited for
        raise DataError("is neither a folder nor a file", where=str(path), remedy="Give a folder of images, or a zip of one.")
    for recognised, read in ((has_idx, idx), (has_cifar, cifar)):
        if recognised(path):
            return _from_arrays(path.name, read(path), wanted)
    if (path / "cifar-10-batches-py").is_dir() or (path / "cifar-100-python").is_dir():
        kind = "cifar10" if (path / "cifar-10-batches-py").is_dir() else "cifar100"
        return _from_arrays(kind, torchvision_set(kind, path, download=False), wanted)
    return _from_files(path.name, FolderTree(path), str(path), wanted)


def _from_arrays(name: str, found: ArraySet, wanted: _Wanted) -> Data:
    splits = dict(found.splits)
    if "test" not in splits:
        images, labels = splits["train"]
        train, test = _hold_out(labels, wanted.seed)
        splits = {"train": (images[train], labels[train]), "test": (images[test], labels[test])}
    for split, (images, labels) in splits.items():
        if wanted.limit is not None:
            chosen = balanced(labels, wanted.limit, wanted.seed)
            images, labels = images[chosen], labels[chosen]
        splits[split] = (_reshape(images, wanted.channels, wanted.size), labels)
    preprocessing = _preprocessing(splits["train"][0], wanted)
    ready = {split: MemorySplit(images, labels, found.classes, preprocessing) for split, (images, labels) in splits.items()}
    return Data(name, ready["train"], ready["test"], found.flip)


def _from_files(name: str, tree: FileTree, where: str, wanted: _Wanted) -> Data:
    found = arrange(tree, where)
    files = _choose(found, wanted)
    first = decode(tree, files["train"][0][0], wanted.channels, wanted.size)
    channels, size = first.shape[0], (first.shape[1], first.shape[2])
    ready: dict[str, Split] = {}
    if first.size * sum(len(names) for names, _ in files.values()) > wanted.memory_limit:
        names, labels = files["train"]
        some = [names[i] for i in balanced(labels, STATISTICS_SAMPLE, wanted.seed)]
        sample = decode_all(tree, some, channels, size, task="statistics", progress=wanted.progress)
        preprocessing = _preprocessing(sample, wanted)
        for split, (names, labels) in files.items():
            ready[split] = StreamedSplit(tree, names, labels, found.classes, preprocessing, wanted.workers)
    else:
        pixels = {
            split: decode_all(tree, names, channels, size, task=f"decode {split}", progress=wanted.progress)
            for split, (names, _) in files.items()
        }
        preprocessing = _preprocessing(pixels["train"], wanted)
        for split, (_, labels) in files.items():
            ready[split] = MemorySplit(pixels[split], labels, found.classes, preprocessing)
    return Data(name, ready["train"], ready["test"])


def _choose(found: LabelledNames, wanted: _Wanted) -> dict[str, tuple[list[str], Tensor]]:
    """The files and labels of "train" and "test", after holding out and limiting."""
    files = {split: ([name for name, _ in rows], torch.tensor([label for _, label in rows])) for split, rows in found.splits.items()}
    if "test" not in files:
        names, labels = files["train"]
        held = dict(zip(("train", "test"), _hold_out(labels, wanted.seed), strict=True))
        files = {split: ([names[i] for i in index], labels[index]) for split, index in held.items()}
    if wanted.limit is None:
        return files
    limited = {}
    for split, (names, labels) in files.items():
        chosen = balanced(labels, wanted.limit, wanted.seed)
        limited[split] = ([names[i] for i in chosen], labels[chosen])
    return limited


def _preprocessing(images: Tensor, wanted: _Wanted) -> Preprocessing:
    mean, std = statistics(images)
    return Preprocessing(
        mean=wanted.mean if wanted.mean is not None else mean,
        std=wanted.std if wanted.std is not None else std,
        size=(images.shape[2], images.shape[3]),
        channels=images.shape[1],
    )


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels of uint8 (N, C, H, W), on the scale from 0 to 1.

    Exact: both are computed from the histogram of the 256 pixel values. A constant channel gets a std of 1/255.
    """
    means, stds = [], []
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel in range(images.shape[1]):
        # In pieces: bincount wants int64, which is eight times the pixels.
        counts = sum(torch.bincount(part.reshape(-1).long(), minlength=256) for part in images[:, channel].split(1024))
        share = torch.as_tensor(counts, dtype=torch.float64) / images[:, channel].numel()
        mean = float((share * values).sum())
        means.append(mean)
        stds.append(max(float((share * (values - mean) ** 2).sum().sqrt()), 1 / 255))
    return tuple(means), tuple(stds)


def balanced(labels: Tensor, count: int, seed: int) -> Tensor:
    """Indices of at most `count` images, sorted, drawn evenly over the classes (a class that is short gives all it has)."""
    if count >= len(labels):
        return torch.arange(len(labels))
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    # The n-th image of each class, in shuffled order, ranks n: taking the lowest ranks takes from all classes in turn.
    rank = torch.empty(len(labels), dtype=torch.int64)
    for label in labels.unique():
        rows = shuffled[labels[shuffled] == label]
        rank[rows] = torch.arange(len(rows))
    return shuffled[rank[shuffled].argsort(stable=True)[:count]].sort().values


def _hold_out(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    test = balanced(labels, max(1, round(len(labels) * TEST_SHARE)), seed)
    mask = torch.ones(len(labels), dtype=torch.bool)
    mask[test] = False
    if not mask.any():
        raise DataError(f"{len(labels)} images are too few to split", remedy="Give separate train and test folders.")
    return mask.nonzero().squeeze(1), test


def _reshape(images: Tensor, channels: int | None, size: tuple[int, int] | None) -> Tensor:
    """uint8 (N, C, H, W) to the wanted channels (grey by ITU-R 601 luma, as PIL has it) and size (bilinear)."""
    if channels == 1 and images.shape[1] == 3:
        weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        images = torch.cat([(part * weights).sum(1, keepdim=True).round().to(torch.uint8) for part in images.split(1024)])
    if size is not None and tuple(images.shape[2:]) != tuple(size):
        scaled = (
            functional.interpolate(part.float(), size=size, mode="bilinear", antialias=True).round().clamp(0, 255).to(torch.uint8)
            for part in images.split(1024)
        )
        images = torch.cat(list(scaled))
    return images.repeat(1, 3, 1, 1) if channels == 3 and images.shape[1] == 1 else images
