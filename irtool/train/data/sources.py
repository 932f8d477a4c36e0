"""Datasets that come as arrays: idx files, CIFAR's binary files, torchvision's by name, scikit-learn's digits."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from irtool.atomic_files import read_text
from irtool.errors import DataError
from irtool.extras import needed

MOST_BYTES = 1 << 30
"""Bytes of one array of pixels or labels."""
LOCAL = "Give a local folder instead: an ImageFolder, a zip of one, idx files (MNIST), or CIFAR's binary files."


@dataclass(frozen=True)
class ArraySet:
    """A dataset in memory.

    Args:
        splits: "train" and perhaps "test": uint8 images (N, C, H, W) and int64 labels (N,).
        classes: their names, in label order.
        flip: whether a mirrored image keeps its class.
    """

    splits: dict[str, tuple[Tensor, Tensor]]
    classes: tuple[str, ...]
    flip: bool = field(default=True)


def digits() -> ArraySet:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey, from 0 to 16 scaled to 0 to 255. One split.

    Raises:
        DataError: scikit-learn is not installed.
    """
    bunch = needed("sklearn.datasets", DataError).load_digits()
    images = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    return ArraySet({"train": (images, torch.from_numpy(bunch.target.astype(np.int64)))}, tuple("0123456789"), flip=False)


# --- idx files (MNIST, Fashion-MNIST; Debian's dataset-fashion-mnist) ---------------------------------------------------

_IDX = {"train": "train", "test": "t10k"}


def has_idx(folder: Path) -> bool:
    """Whether the folder holds idx files by their usual names."""
    return _idx_file(folder, "train", "images", 3) is not None or _idx_file(folder, "t10k", "images", 3) is not None


def idx(folder: Path) -> ArraySet:
    """`train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and `t10k-...`, gzipped or not.

    Format: two zero bytes, a type byte (8: unsigned), the number of dimensions, each size as big-endian uint32, the data.

    Raises:
        DataError: a file is missing, truncated or of another type; the counts disagree.
    """
    splits = {}
    for split, prefix in _IDX.items():
        images, labels = (_idx_file(folder, prefix, kind, rank) for kind, rank in (("images", 3), ("labels", 1)))
        if images is None and labels is None and split == "test":
            continue
        if images is None or labels is None:
            lacking = "images-idx3" if images is None else "labels-idx1"
            raise DataError(f"{prefix}-{lacking}-ubyte[.gz] is missing", where=str(folder), remedy="Copy the whole dataset there.")
        pixels, classes = _read_idx(images, 3), _read_idx(labels, 1)
        if len(pixels) != len(classes):
            raise DataError(f"{len(pixels)} images but {len(classes)} labels", where=str(folder), remedy="Copy the dataset again.")
        splits[split] = (torch.from_numpy(pixels).unsqueeze(1), torch.from_numpy(classes.astype(np.int64)))
    count = 1 + max(int(labels.max()) for _, labels in splits.values())
    # MNIST and Fashion-MNIST share their file names. A mirrored shirt is a shirt, a mirrored 3 is not: only a folder
    # that says "fashion" is flipped.
    return ArraySet(splits, tuple(map(str, range(count))), flip="fashion" in folder.resolve().name.lower())


def _idx_file(folder: Path, prefix: str, kind: str, rank: int) -> Path | None:
    names = (f"{prefix}-{kind}{dot}idx{rank}-ubyte{suffix}" for dot in "-." for suffix in ("", ".gz"))
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _read_idx(path: Path, rank: int) -> np.ndarray:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4 + 4 * rank)
            zeros, kind, found = struct.unpack_from(">HBB", head)
            shape = struct.unpack_from(f">{rank}I", head, 4)
            size = math.prod(shape)
            if 0 in shape or size > MOST_BYTES:
                raise DataError(f"sizes {shape}", where=str(path), remedy=f"Give 1 to {MOST_BYTES:,} bytes of pixels or labels.")
            raw = file.read(size + 1)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise DataError(f"not a complete idx file ({error})", where=str(path), remedy="Copy or download it again.") from error
    if (zeros, kind, found) != (0, 8, rank):
        raise DataError("not an idx file of unsigned bytes", where=str(path), remedy="Copy or download it again.")
    if len(raw) != size:
        held = f"{len(raw)} bytes" if len(raw) < size else "more bytes"
        raise DataError(f"{held} of data where {size} belong", where=str(path), remedy="Copy or download it again.")
    return np.frombuffer(raw, np.uint8).reshape(shape).copy()


# --- CIFAR's binary files: rows of label byte(s) and 3,072 pixel bytes -----------------------------------------------------

_CIFAR_BIN = {
    # first training file: (label bytes in front, training files, test file, names file)
    "data_batch_1.bin": (1, tuple(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin", "batches.meta.txt"),
    "train.bin": (2, ("train.bin",), "test.bin", "fine_label_names.txt"),
}


def has_cifar(folder: Path) -> bool:
    """Whether the folder holds CIFAR-10 or CIFAR-100 in the binary version."""
    return any((folder / name).is_file() for name in _CIFAR_BIN)


def cifar(folder: Path) -> ArraySet:
    """CIFAR-10 or CIFAR-100, "binary version" (the Python version is a pickle: see `torchvision_set`).

    Raises:
        DataError: a file is missing or its size is not a multiple of a row.
    """
    front, train, test, names = next(row for name, row in _CIFAR_BIN.items() if (folder / name).is_file())
    splits = {}
    for split, files in (("train", train), ("test", (test,))):
        parts = [_read_cifar(folder / name, front) for name in files]
        splits[split] = (torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts]))
    count = 1 + int(splits["train"][1].max())
    listed = _names(folder / names)
    return ArraySet(splits, tuple(listed) if len(listed) == count else tuple(map(str, range(count))))


def _names(path: Path) -> list[str]:
    """The classes, a line each; none if there is no such file."""
    try:
        return read_text(path).split() if path.is_file() else []
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"no list of classes ({error})", where=str(path), remedy="Copy the dataset again, or remove it.") from error


def _read_cifar(path: Path, front: int) -> tuple[Tensor, Tensor]:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{path.stat().st_size:,} bytes", where=str(path), remedy=f"Give files of at most {MOST_BYTES:,}.")
        raw = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise DataError(f"cannot read ({error.strerror})", where=str(path), remedy="Copy the whole dataset there.") from error
    if len(raw) == 0 or len(raw) % (front + 3072):
        raise DataError("truncated", where=str(path), remedy="Copy or download it again.")
    rows = raw.reshape(-1, front + 3072)
    # CIFAR-100 has the coarse label first; the fine one stands right before the pixels.
    labels = torch.from_numpy(rows[:, front - 1].astype(np.int64))
    return torch.from_numpy(rows[:, front:].reshape(-1, 3, 32, 32).copy()), labels


# --- torchvision by name ----------------------------------------------------------------------------------------------------

_TORCHVISION = {
    "cifar10": ("CIFAR10", True),
    "cifar100": ("CIFAR100", True),
    "mnist": ("MNIST", False),
    "fashionmnist": ("FashionMNIST", True),
}


def torchvision_set(name: str, root: Path | None = None, *, download: bool = True) -> ArraySet:
    """A torchvision dataset by name, from `root` if it is there, else downloaded into it.

    Args:
        name: a key of `named_sets()`.
        root: default: `torchvision` below `$XDG_CACHE_HOME/irtool` (or `~/.cache/irtool`).
        download: without it nothing is written into `root`, and a dataset that is not there, or is damaged, is refused.

    Raises:
        DataError: torchvision is not installed, or the download is impossible.
    """
    kind, flip = _TORCHVISION[name]
    folder = root or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "irtool" / "torchvision"
    datasets = needed("torchvision.datasets", DataError)
    try:
        # torchvision checks md5 sums before it unpickles CIFAR's Python version.
        sets = {split: getattr(datasets, kind)(folder, train=split == "train", download=download) for split in ("train", "test")}
    except (OSError, RuntimeError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(":")
        if not download:
            raise DataError("its files are not complete", where=str(folder), remedy=f"Copy or download {kind} again.") from error
        raise DataError(f"it is not in {folder} and cannot be downloaded ({reason})", where=kind, remedy=LOCAL) from error
    splits = {split: (_pixels(torch.as_tensor(one.data)), torch.as_tensor(one.targets, dtype=torch.int64)) for split, one in sets.items()}
    return ArraySet(splits, tuple(str(label) for label in sets["train"].classes), flip)


def _pixels(images: Tensor) -> Tensor:
    return (images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)).contiguous()


def named_sets(root: Path | None = None) -> dict[str, Callable[[], ArraySet]]:
    """List the datasets that `load_data` knows by name, in lower case without hyphens."""
    table: dict[str, Callable[[], ArraySet]] = {"digits": digits}
    for name in _TORCHVISION:
        table[name] = lambda name=name: torchvision_set(name, root)  # type: ignore[misc]
    return table
