"""How images become the inputs of a model, and how near the outputs of two of its forms are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import torch

from irtool.engines.session import Session
from irtool.errors import CheckError, OptionError
from irtool.ir import Graph


@dataclass(frozen=True)
class Feed:
    """Images, float32 (N, C, H, W), as the inputs of a model.

    Attributes:
        place: which input takes the images.
        last: whether it takes them with the channels last.
        others: what the other inputs get, by place: for one image where they have a batch.
        batched: which of the others have a batch.
        dtype: of the input that takes images; for whole numbers these are rounded.
        twins: further inputs that take images: those of a batch, each moved on by a few, so that an input gets another image than the others.
    """

    place: int = 0
    last: bool = False
    others: Mapping[int, np.ndarray] = field(default_factory=dict)
    batched: frozenset[int] = frozenset()
    twins: tuple[int, ...] = ()
    dtype: str = "float32"

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """The inputs in the model's order."""
        found = dict(self.others)
        for place in self.batched:
            found[place] = np.concatenate([self.others[place]] * len(images))
        given = np.ascontiguousarray(images.transpose(0, 2, 3, 1)) if self.last else images
        if given.dtype != self.dtype:
            given = (given if self.dtype.startswith("float") else np.rint(given)).astype(self.dtype)
        found[self.place] = given
        for step, place in enumerate(self.twins, 1):
            found[place] = np.roll(given, step, axis=0)
        return tuple(found[place] for place in sorted(found))


def feed_of(graph: Graph, image: tuple[int, ...]) -> Feed:
    """Make a function that feeds images to a graph: the inputs of the images' sizes take them, others are ones, so that masks let all through.

    Args:
        graph: an ONNX graph or a traced model.
        image: (C, H, W).

    Raises:
        OptionError: no input takes such images.
    """
    sizes = [value.sizes for value in graph.inputs]
    last = (*image[1:], image[0])
    found = [(place, tuple(shape[1:]) == last) for place, shape in enumerate(sizes) if tuple(shape[1:]) in (image, last)]
    if not found:
        raise OptionError(
            f"no input takes images of {'x'.join(map(str, image))}: {', '.join('x'.join(map(str, shape)) for shape in sizes)}",
            where="quantize",
            remedy="Give --image-size; for inputs that are no pictures, --calib FILE.npy, with one a row.",
        )
    place = found[0][0]
    alike = [other for other, _ in found[1:] if sizes[other] == sizes[place] and graph.inputs[other].dtype == graph.inputs[place].dtype]
    batch = sizes[place][0]
    batched = frozenset(other for other, shape in enumerate(sizes) if other not in (place, *alike) and shape and shape[0] == batch)
    others = {}
    for other, value in enumerate(graph.inputs):
        if other != place and other not in alike:
            shape = (1, *value.sizes[1:]) if other in batched else value.sizes
            others[other] = np.ones(shape, _named(value.dtype))
    return Feed(place, found[0][1] and tuple(sizes[place][1:]) != image, others, batched, tuple(alike), _named(graph.inputs[place].dtype))


def _named(dtype: torch.dtype | None) -> str:
    return "float32" if dtype is None else str(dtype).removeprefix("torch.")


def runner(session: Session, feed: Feed, batch: int | None) -> Callable[[np.ndarray], list[np.ndarray]]:
    """An engine as a function from any number of images to all its outputs.

    Args:
        session: an engine with a model.
        feed: how the model takes images.
        batch: the batch that is written into the model; None if it is free.
    """

    def run(images: np.ndarray) -> list[np.ndarray]:
        step, parts = batch or len(images), list[list[np.ndarray]]()
        for start in range(0, len(images), step):
            some = images[start : start + step]
            padded = np.concatenate([some, np.repeat(some[-1:], step - len(some), axis=0)])
            results = session.run(*feed(padded))
            parts.append([array[: len(some)] if array.ndim and len(array) == step else array for array in results])
        return [joined(list(arrays)) for arrays in zip(*parts, strict=True)]

    return run


def as_read(path: Path, names: Sequence[str]) -> list[str]:
    """The names of values in a file as what reads them gets them: rounded to integers and back, where the file does so."""
    nodes = onnx.load(str(path), load_external_data=False).graph.node
    rounded = {node.input[0]: node.output[0] for node in nodes if node.op_type == "QuantizeLinear"}
    back = {node.input[0]: node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
    return [back.get(rounded.get(name, ""), name) for name in names]


def in_parts(run: Callable[[np.ndarray], list[np.ndarray]], images: np.ndarray, size: int = 64) -> list[np.ndarray]:
    """Run on some images at a time, so that memory does not grow with their number."""
    parts = [run(images[start : start + size]) for start in range(0, len(images), size)]
    return [joined(arrays) for arrays in zip(*parts, strict=True)]


def joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Put the results of several runs together, along the images; where their sizes differ, as one row of numbers."""
    if len(arrays) == 1:
        return arrays[0]
    same = all(array.ndim and array.shape[1:] == arrays[0].shape[1:] for array in arrays)
    return np.concatenate(arrays) if same else np.concatenate([array.reshape(-1) for array in arrays])


def agreement(results: Sequence[np.ndarray], references: Sequence[np.ndarray]) -> float:
    """Agreement of the outputs of two forms of a model: 1 - |result - reference|^2 / |reference|^2, of the worst output.

    It is 1 for equal outputs, and 0.997 where the noise is 25 dB below the signal. Integers are compared entry by entry: the
    share that is equal. Outputs whose sizes differ (how many detections there are is data) are left out.

    Raises:
        CheckError: no output is left.
    """
    pairs = [(a, b) for a, b in zip(results, references, strict=True) if a.shape == b.shape and a.size]
    if not pairs:
        raise CheckError(
            "no output has the same sizes in float and in int8",
            where="quantize",
            remedy="Quantise the part of the model before its NonMaxSuppression.",
        )
    return min(_same(a, b) for a, b in pairs)


def _same(result: np.ndarray, reference: np.ndarray) -> float:
    if not np.issubdtype(reference.dtype, np.floating):
        return float((result == reference).mean())
    signal = float((reference.astype(np.float64) ** 2).sum())
    noise = float(((result.astype(np.float64) - reference) ** 2).sum())
    return max(0.0, 1.0 - noise / max(signal, 1e-30))


def is_classifier(outputs: Sequence[np.ndarray], images: int) -> bool:
    """Whether a model gives one row of scores for each image, and nothing else."""
    return (
        len(outputs) == 1
        and outputs[0].ndim >= 2
        and len(outputs[0]) == images
        and outputs[0].size == outputs[0].shape[0] * outputs[0].shape[1]
    )
