"""One split of a dataset: in memory where it fits, streamed from files where it does not. Both look the same."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

from irtool.errors import DataError
from irtool.progress import Progress, Status, Throttle, silent
from irtool.train.data.image_files import FileTree, decode
from irtool.train.data.preprocessing import Preprocessing


class Split(Protocol):
    """Labelled images of one size."""

    @property
    def labels(self) -> Tensor:
        """Whole numbers (N,), from 0 to below the number of classes."""
        ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def preprocessing(self) -> Preprocessing: ...

    def __len__(self) -> int: ...

    def batches(self, indices: Sequence[Tensor]) -> Iterator[Tensor]:
        """For each int64 index tensor, the images it names: uint8 (len(index), C, H, W), on the CPU."""
        ...


def labels_of(split: Split) -> Tensor:
    """A split's labels as int64 (N,) on the CPU, each the number of one of its classes.

    Whole splits are checked, before they are used: a check of each batch would make a GPU wait.

    Raises:
        DataError: there is one that is not.
    """
    labels, classes = torch.as_tensor(split.labels), len(split.classes)
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        kind = str(labels.dtype).removeprefix("torch.")
        raise DataError(
            f"{kind} labels of shape {tuple(labels.shape)}",
            where="labels",
            remedy="Give each image the number of its class, as an integer: labels.long(), or labels.argmax(1) of probabilities.",
        )
    labels = labels.to("cpu", torch.int64)
    odd = labels[(labels < 0) | (labels >= classes)]
    if len(odd):
        raise DataError(
            f"label {int(odd[0])}, but the data has {classes} classes",
            where="labels",
            remedy=f"Number the labels from 0 to {classes - 1}, leave such images out, or name all classes in the split's classes.",
        )
    return labels


class MemorySplit:
    """All images decoded, uint8 (N, C, H, W).

    Raises:
        DataError: there are more or fewer labels than images, or the images are not of the preprocessing's shape.
    """

    def __init__(self, images: Tensor, labels: Tensor, classes: tuple[str, ...], preprocessing: Preprocessing) -> None:
        if len(images) != len(labels) or images.shape[1:] != preprocessing.input_shape:
            raise DataError(
                f"{len(labels)} labels and a preprocessing for {preprocessing.input_shape}, but images {tuple(images.shape)}",
                where="split",
                remedy="Give one label an image, and images (N, C, H, W) of the preprocessing's channels and size.",
            )
        self.images, self.labels, self.classes, self.preprocessing = images, labels, classes, preprocessing

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, indices: Sequence[Tensor]) -> Iterator[Tensor]:
        for index in indices:
            yield self.images[index]


class Part:
    """Some images of another split, by their indices."""

    def __init__(self, whole: Split, indices: Tensor) -> None:
        self._whole, self._indices = whole, indices
        self.labels, self.classes, self.preprocessing = whole.labels[indices], whole.classes, whole.preprocessing

    def __len__(self) -> int:
        return len(self._indices)

    def batches(self, indices: Sequence[Tensor]) -> Iterator[Tensor]:
        return self._whole.batches([self._indices[index] for index in indices])


class StreamedSplit:
    """Images decoded by threads while they are needed, one batch ahead of whoever reads them.

    Threads, not processes: PIL decodes outside the interpreter's lock, nothing has to be pickled or copied, and a
    script without an `if __name__ == "__main__"` works.

    Args:
        tree: where the files are.
        names: the file of each image.
        labels: int64 (N,).
        workers: decoding threads.
    """

    def __init__(
        self,
        tree: FileTree,
        names: Sequence[str],
        labels: Tensor,
        classes: tuple[str, ...],
        preprocessing: Preprocessing,
        workers: int = 2,
    ) -> None:
        self.labels, self.classes, self.preprocessing, self.workers = labels, classes, preprocessing, max(1, workers)
        self._tree, self._names = tree, names

    def __len__(self) -> int:
        return len(self.labels)

    def _decode(self, index: int) -> Tensor:
        return torch.from_numpy(decode(self._tree, self._names[index], self.preprocessing.channels, self.preprocessing.size))

    def batches(self, indices: Sequence[Tensor]) -> Iterator[Tensor]:
        ahead: deque[list[Future[Tensor]]] = deque()
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                for index in indices:
                    ahead.append([pool.submit(self._decode, row) for row in index.tolist()])
                    if len(ahead) > 1:
                        yield torch.stack([image.result() for image in ahead.popleft()])
                if ahead:
                    yield torch.stack([image.result() for image in ahead.popleft()])
            finally:
                # Whoever stops reading early must not wait for images that nobody wants.
                pool.shutdown(wait=False, cancel_futures=True)


def decode_all(
    tree: FileTree,
    names: Sequence[str],
    channels: int,
    size: tuple[int, int],
    *,
    workers: int = 2,
    task: str = "decode",
    progress: Progress = silent,
) -> Tensor:
    """Every file as one uint8 tensor (N, C, H, W).

    Raises:
        DataError: one of the files cannot be decoded; it is named.
    """
    images = torch.empty((len(names), channels, *size), dtype=torch.uint8)
    throttle = Throttle()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for done, pixels in enumerate(pool.map(lambda name: decode(tree, name, channels, size), names), start=1):
                images[done - 1] = torch.from_numpy(pixels)
                if throttle.due(done == len(names)):
                    progress(Status(task, done, len(names)))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return images


def in_batches(count: int, size: int) -> list[Tensor]:
    """The indices 0 to `count` in order, in pieces of `size`; the last may be shorter."""
    return list(torch.arange(count).split(size)) if count else []
