"""Accuracy and loss of anything that maps images to logits: a module, a graph, an inference session."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from irtool.errors import DataError, OptionError
from irtool.progress import Progress, Status, Throttle, silent
from irtool.tensor_defaults import real_tensors
from irtool.train.data.dataset import Data
from irtool.train.data.loaders import pairs
from irtool.train.data.split import Split, in_batches, labels_of
from irtool.train.settings import is_whole

LARGE_BATCH = 256
BATCH = {"cpu": 32}
"""Images at a time by device. On one core, PreResNet-38 at 32x32 scores 195 images/s in batches of 32 and 74 in batches of
256, whose activations no longer fit the cache."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of a model on a split."""

    accuracy: float
    """Share of images whose largest logit is the label's, in [0, 1]."""
    loss: float
    """Mean cross-entropy in nats."""
    count: int
    """Images scored."""
    rate: float
    """Images per second, preprocessing included."""


def module_of(model: object) -> nn.Module:
    """The `nn.Module` to train: the model itself, or an irtool graph's `.module`.

    Raises:
        OptionError: neither.
    """
    # A module first: wrappers such as DistributedDataParallel have a `.module` of their own.
    found = model if isinstance(model, nn.Module) else getattr(model, "module", None)
    if not isinstance(found, nn.Module):
        raise OptionError(
            f"a {type(model).__name__} cannot be trained", remedy="Give a torch.nn.Module, or a graph that trace() made from one."
        )
    return found


def logits_of(output: object, count: int, classes: int | None, where: str = "model") -> Tensor:
    """The model's logits as a tensor (count, classes), taken out of a tuple, list or dict of one or more outputs.

    Args:
        classes: None where the data does not say: then any number of them will do.

    Raises:
        DataError: the first output does not have one logit a class for each of `count` images.
    """
    if isinstance(output, dict):
        output = output.get("logits", output.get("out", next(iter(output.values()), None)))
    while isinstance(output, (tuple, list)) and output:
        output = output[0]
    logits = torch.from_numpy(output) if isinstance(output, np.ndarray) else output
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if classes is None and (not isinstance(logits, Tensor) or logits.ndim != 2):
        raise DataError(f"the output is {shape}", where=where, remedy="Give a model with one row of logits an image.")
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] != (classes or logits.shape[1]):
        raise DataError(
            f"the output is {shape}, but the data has {classes} classes",
            where=where,
            remedy=f"Give data with the model's classes, or a model with num_classes={classes}.",
        )
    if len(logits) != count:
        raise DataError(
            f"the output has {len(logits)} rows for {count} images",
            where=where,
            remedy="Load the data with the model's image_size and channels, and keep the batch apart in its view and reshape calls.",
        )
    return logits


def check_labels(labels: Tensor, logits: Tensor) -> None:
    """Make sure that a batch's labels are numbers of the model's classes.

    Raises:
        DataError: one is not.
    """
    highest = int(labels.max()) if len(labels) else 0
    if highest >= logits.shape[1]:
        raise DataError(
            f"label {highest}, but the model has {logits.shape[1]} classes",
            where="DataLoader",
            remedy=f"Number the labels from 0 to {logits.shape[1] - 1}, or give a model with num_classes={highest + 1} or more.",
        )


def scored_labels(split: Split) -> Tensor:
    """The labels (see `labels_of`) of a split that can be scored.

    Raises:
        DataError: it has no images, or a label that is no class's.
    """
    if not len(split):
        raise DataError("no images to evaluate on", remedy="Give a test split with images.")
    return labels_of(split)


@real_tensors()
def evaluate(
    model: object,
    split: Split | Data | Iterable[Any],
    batch_size: int | None = None,
    *,
    progress: Progress = silent,
    task: str = "evaluate",
) -> Evaluation:
    """Score a model on a split (of a `Data`: its test split), or on what a DataLoader gives.

    Args:
        model: an `nn.Module` or a graph (put in eval mode while it runs, then back; it stays on its device), or any callable
            from float32 (N, C, H, W) as a numpy array to logits (N, classes), such as a session.
        batch_size: images at a time; the last batch may be smaller. Default: see `BATCH`. A DataLoader has its own.

    Raises:
        DataError: the split is empty, has labels that are not classes' numbers, the model refuses its input shape, or the
            outputs are not one logit a class.
        OptionError: a batch size that can never work.
    """
    split = split.test if isinstance(split, Data) else split
    throttle, begun, done = Throttle(), time.perf_counter(), 0
    correct = loss = torch.zeros(())
    found, total = _scored(model, split, batch_size)
    for labels, logits in found:
        labels = labels.to(logits.device)
        loss = loss.to(logits.device) + functional.cross_entropy(logits, labels, reduction="sum")
        correct = correct.to(logits.device) + (logits.argmax(1) == labels).sum()
        done += len(labels)
        if throttle.due(done == total):
            rate = done / max(time.perf_counter() - begun, 1e-9)
            progress(Status(task, done, total, float(loss) / done, float(correct) / done, rate, max(0, total - done) / rate))
    if not done:
        raise DataError("no images to evaluate on", remedy="Give a test split with images.")
    return Evaluation(float(correct) / done, float(loss) / done, done, done / max(time.perf_counter() - begun, 1e-9))


@real_tensors()
def predict(model: object, split: Split, batch_size: int | None = None, *, progress: Progress = silent, task: str = "predict") -> Tensor:
    """A model's logits on a split, float32 (N, classes), on the CPU. Arguments and errors are those of `evaluate`."""
    throttle, begun, done, parts = Throttle(), time.perf_counter(), 0, []
    for index, logits in _forward(model, split, batch_size):
        parts.append(logits.cpu())
        done += len(index)
        if throttle.due(done == len(split)):
            rate = done / max(time.perf_counter() - begun, 1e-9)
            progress(Status(task, done, len(split), rate=rate, seconds_left=(len(split) - done) / rate))
    return torch.cat(parts) if parts else torch.empty(0, len(split.classes))


def _scored(model: object, split: Split | Iterable[Any], batch_size: int | None) -> tuple[Iterator[tuple[Tensor, Tensor]], int]:
    """Labels and logits, batch by batch, and the number of images (of a loader about that)."""
    if not isinstance(split, Iterable) or hasattr(split, "batches"):
        split = cast("Split", split)
        every = scored_labels(split)
        return ((every[index], logits) for index, logits in _forward(model, split, batch_size)), len(split)

    def read() -> Iterator[tuple[Tensor, Tensor]]:
        with _running(model) as (call, device):
            for images, labels in pairs(split):
                logits = _logits(call, images.to(device), None)
                check_labels(labels, logits)
                yield labels, logits

    batch = getattr(split, "batch_size", None) or 1
    return read(), len(getattr(split, "dataset", ())) or len(cast("Sized", split)) * batch


def _forward(model: object, split: Split, batch_size: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices and float32 logits, batch by batch, the model in eval mode meanwhile."""
    if batch_size is not None and not is_whole(batch_size, 1):
        raise OptionError(f"batch_size = {batch_size!r}", remedy="Give a whole number of at least 1, or leave it out.")
    with _running(model) as (call, device):
        indices = in_batches(len(split), batch_size or BATCH.get(device.type, LARGE_BATCH))
        for index, pixels in zip(indices, split.batches(indices), strict=True):
            yield index, _logits(call, split.preprocessing.normalise(pixels.to(device)), len(split.classes))


def _logits(call: Callable[[Tensor], object], images: Tensor, classes: int | None) -> Tensor:
    # Not inference mode: a buffer that the forward replaces could then never be trained with again.
    with torch.no_grad():
        return logits_of(run_model(call, images), len(images), classes).float()


@contextlib.contextmanager
def _running(model: object) -> Iterator[tuple[Callable[[Tensor], object], torch.device]]:
    """A model as a callable on tensors, in eval mode meanwhile, and its device."""
    module = module_of(model) if isinstance(getattr(model, "module", model), nn.Module) else None
    tensors = (*module.parameters(), *module.buffers()) if module else ()
    device = next((tensor.device for tensor in tensors), torch.device("cpu"))
    was_training = [child for child in module.modules() if child.training] if module else []
    if module:
        module.eval()
    try:
        yield module or numpy_forward(model), device
    finally:
        # Not module.train(): parts that the caller had frozen in eval mode stay so.
        for child in was_training:
            child.training = True


def run_model(forward: Callable[[Tensor], object], images: Tensor, where: str = "model") -> object:
    """Call a model, and turn a refusal of the input into a clear error.

    Raises:
        DataError: the model raised; its reason and the input's shape are given.
    """
    try:
        return forward(images)
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DataError(
            f"the model refuses an input of {tuple(images.shape)} ({reason})",
            where=where,
            remedy="Load the data with the model's image_size and channels.",
        ) from error


def numpy_forward(model: object) -> Callable[[Tensor], object]:
    """A callable on numpy arrays as one on tensors.

    Raises:
        OptionError: it cannot be called.
    """
    if not callable(model):
        raise OptionError(
            f"a {type(model).__name__} cannot be evaluated", remedy="Give a torch.nn.Module, a graph, or a callable on numpy arrays."
        )
    call = cast("Callable[[NDArray[np.float32]], Any]", model)
    return lambda images: call(images.cpu().numpy())
