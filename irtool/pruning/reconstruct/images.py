"""Images from outside as batches of a graph's inputs: whatever form they come in, and what is wrong with them in a line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from irtool.errors import DataError, GraphError
from irtool.ir.frontier import Batch
from irtool.ir.graph import Graph

REMEDY = "Give a tensor (N, C, H, W), a list of such batches, or a DataLoader; a tuple holds the arguments of forward first."


def image_batches(graph: Graph, images: Any, limit: int, chunk: int) -> list[Batch]:
    """Images as arguments of a graph, cut into batches of equal size. What comes after the arguments (labels) is left aside.

    Args:
        graph: says how many arguments there are, and their types.
        images: a tensor or array of images; or an iterable of batches, of images without a batch axis, or of tuples that begin
            with the graph's arguments.
        limit: at most so many images.
        chunk: images in a batch.

    Raises:
        DataError: these are no images for this graph, or there are none.
    """
    if isinstance(images, Tensor | np.ndarray):
        images = [images]
    if hasattr(images, "__getitem__") and hasattr(images, "__len__") and not isinstance(images, Iterable):
        images = _items(images, limit)  # a Dataset: one image at a time
    if isinstance(images, str | bytes | Mapping) or not isinstance(images, Iterable):
        raise DataError(f"a {type(images).__name__} holds no images", where="images", remedy=REMEDY)
    found, left = list[Batch](), limit
    for item in images:
        batch = _arguments(graph, item)
        size = size_of(batch)
        found.append(batch if size <= left else _cut(batch, 0, left))
        left -= size
        if left <= 0:
            break
    if not found:
        raise DataError("there are no images", where="images", remedy=REMEDY)
    return list(_regrouped(found, chunk))


def require_information(batches: Sequence[Batch]) -> None:
    """Refuse images that say nothing about a net: all are the same plain colour, or, of inputs without positions, all are one.

    Raises:
        DataError: so it is, of every argument that holds real numbers.
    """
    parts = [[part for part in batch if isinstance(part, Tensor) and part.is_floating_point() and part.dim() > 1] for batch in batches]
    columns = list(zip(*parts, strict=False))
    if columns and all(_plain(column) for column in columns):
        count = sum(map(size_of, batches))
        raise DataError(
            f"{f'all {count} images hold' if count > 1 else 'the image holds'} one value in every position, which says nothing about the net",
            where="images",
            remedy="Look at how they are read and prepared.",
        )


def _plain(column: Sequence[Tensor]) -> bool:
    """Whether the same vector of channels is everywhere in some tensors (N, C, ...)."""
    first = column[0]
    if sum(map(len, column)) * first[0, :1].numel() < 2:
        return False  # one vector says what one image says
    one = first[:1].reshape(1, first.shape[1], -1)[:, :, :1]
    return all(part.shape[1] == first.shape[1] and bool(part.reshape(len(part), part.shape[1], -1).eq(one).all()) for part in column)


def _items(dataset: Any, limit: int) -> Iterator[Any]:
    for number in range(min(len(dataset), limit)):
        yield dataset[number]


def size_of(batch: Batch) -> int:
    """Count the images of a batch."""
    first = next((part for part in batch if isinstance(part, Tensor)), None)
    return first.shape[0] if first is not None and first.dim() else 1


_REFUSALS = (GraphError, RuntimeError, ValueError, TypeError, IndexError)
"""Errors of a program that does not run on its inputs."""


def split_to_fit(graph: Graph, batches: Sequence[Batch]) -> list[Batch]:
    """The batches, cut to the example's size where the program has that written into it.

    Raises:
        DataError: the program does not run on them.
    """
    own = size_of(graph.example_inputs)
    first = batches[0]
    few = 2 if own != 2 else 3 if size_of(first) > 2 else 1  # another size than the example's, where there are images enough
    try:
        graph.run_as(_cut(first, 0, min(few, size_of(first))))
        return list(batches)
    except _REFUSALS as error:
        cause = error
    fitting = [part for batch in batches for part in _parts(batch, own) if size_of(part) == own]
    if fitting and size_of(first) != own:
        try:
            graph.run_as(fitting[0])
            return fitting
        except _REFUSALS as error:
            cause = error
    text = (str(cause).strip().splitlines() or [type(cause).__name__])[0][:160]
    raise DataError(f"the model does not run on these images ({text})", where="images", remedy=REMEDY) from cause


def layout(graphs: Iterable[Graph], batch: Batch) -> Callable[[Batch], Batch]:
    """Return what lays batches out in memory so that graphs run fast: images with their channels last, which a processor's convolutions
    run through in two thirds of the time. Nothing is laid out anew where a program asks for the usual layout, as `view` may.

    Args:
        graphs: what runs.
        batch: one of the batches, to try it on.
    """
    try:
        for graph in graphs:
            graph.run_as(_channels_last(batch))
    except _REFUSALS:
        return lambda batch: batch
    return _channels_last


def _channels_last(batch: Batch) -> Batch:
    return tuple(map(_laid_out, batch))


def _laid_out(part: Any) -> Any:
    images = isinstance(part, Tensor) and part.dim() == 4 and part.is_floating_point() and part.device.type == "cpu"
    return part.contiguous(memory_format=torch.channels_last) if images else part


def _arguments(graph: Graph, item: Any) -> Batch:
    examples = graph.example_inputs
    if isinstance(item, Tensor | np.ndarray):
        item = (item,)
    if not isinstance(item, tuple | list):
        raise DataError(f"a batch is a {type(item).__name__}", where="images", remedy=REMEDY)
    if len(item) < len(examples):
        raise DataError(f"a batch holds {len(item)} of the {len(examples)} arguments of the model", where="images", remedy=REMEDY)
    return tuple(_argument(given, example) for given, example in zip(item, examples, strict=False))


def _argument(given: Any, example: Any) -> Any:
    if not isinstance(example, Tensor):
        return given
    if isinstance(given, np.ndarray) and given.dtype != object:
        given = torch.from_numpy(np.ascontiguousarray(given))
    if not isinstance(given, Tensor):
        raise DataError(f"an argument is a {type(given).__name__}, the model takes a tensor", where="images", remedy=REMEDY)
    if given.dim() == example.dim() - 1:
        given = given[None]
    if given.dim() != example.dim():
        raise DataError(f"an argument has shape {tuple(given.shape)}, the example {tuple(example.shape)}", where="images", remedy=REMEDY)
    if given.layout is not torch.strided:
        raise DataError(f"an argument is a sparse tensor ({given.layout})", where="images", remedy="Call to_dense() on it.")
    if not given.numel():
        raise DataError("a batch is empty", where="images", remedy="Leave it out.")
    if _numbers(given) != _numbers(example):
        raise DataError(
            f"an argument holds {_numbers(given)} ({given.dtype}), the model takes {_numbers(example)}",
            where="images",
            remedy="Prepare them as for inference, normalised and in the model's type.",
        )
    if not bool(torch.isfinite(given).all()):
        raise DataError("an image holds values that are not finite", where="images", remedy="Look for NaN and infinity in it.")
    return given.detach().to(example.device, example.dtype)


def _numbers(tensor: Tensor) -> str:
    """Name a tensor's kind of numbers, for people."""
    return "complex numbers" if tensor.is_complex() else "real numbers" if tensor.is_floating_point() else "whole numbers"


def _cut(batch: Batch, start: int, stop: int) -> Batch:
    size = size_of(batch)
    return tuple(part[start:stop] if isinstance(part, Tensor) and part.dim() and part.shape[0] == size else part for part in batch)


def _parts(batch: Batch, size: int) -> Iterator[Batch]:
    for start in range(0, size_of(batch), max(size, 1)):
        yield _cut(batch, start, start + size)


def _regrouped(batches: Sequence[Batch], chunk: int) -> Iterator[Batch]:
    """Single images put together, large batches cut."""
    waiting = list[Batch]()
    for batch in batches:
        if waiting and (_kind(batch) != _kind(waiting[0]) or sum(map(size_of, waiting)) + size_of(batch) > chunk):
            yield from _parts(_joined(waiting), chunk)
            waiting = []
        waiting.append(batch)
        if _kind(batch) is None:
            yield batch
            waiting = []
    if waiting:
        yield from _parts(_joined(waiting), chunk)


def _kind(batch: Batch) -> tuple[Any, ...] | None:
    """Return the properties that two batches must share to be put together; None for one that must stay as it is."""
    size = size_of(batch)
    if not all(isinstance(part, Tensor) and part.dim() and part.shape[0] == size for part in batch):
        return None
    return tuple((part.shape[1:], part.dtype) for part in batch)


def _joined(batches: Sequence[Batch]) -> Batch:
    return batches[0] if len(batches) == 1 else tuple(map(torch.cat, zip(*batches, strict=True)))


def live_bytes(graph: Graph) -> int:
    """Bytes of the values that are alive together at most, for each image of the example."""
    last = {value: number for number, node in enumerate(graph.nodes) for value in (*node.inputs, *node.outputs) if not value.is_param}
    alive = most = 0
    ends: dict[int, int] = {}
    for number, node in enumerate(graph.nodes):
        for value in node.outputs:
            if value.shape is not None and value.dtype is not None:
                size = value.dtype.itemsize
                for length in value.shape:
                    size *= length
                alive += size
                ends[last[value]] = ends.get(last[value], 0) + size
        most = max(most, alive)
        alive -= ends.pop(number, 0)
    return most // max(size_of(graph.example_inputs), 1)
