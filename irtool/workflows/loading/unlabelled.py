"""Images that nobody has labelled: a folder of them serves to calibrate, to refit, and to see how often two models agree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from irtool.engines.flat_module import tensors_of
from irtool.errors import IrtoolError
from irtool.ir.graph import Graph
from irtool.progress import Reporter
from irtool.train import Data, Preprocessing
from irtool.train.data.dataset import TEST_SHARE, statistics
from irtool.train.data.image_files import FolderTree, decode
from irtool.train.data.split import MemorySplit, Split, decode_all
from irtool.workflows.loading.data import DataOptions

UNLABELLED = 5000
"""At most so many images of a folder without classes are used."""
BATCH = 32
"""Images at a time when a model answers."""


def is_flat(source: str | None) -> bool:
    """Whether this is a folder with images, and no folders of them: nothing says what they show."""
    if source is None or not Path(source).is_dir():
        return False
    names = FolderTree(Path(source)).names()
    return bool(names) and all("/" not in name for name in names)


def flat_images(model: str | nn.Module | Graph, options: DataOptions, reporter: Reporter) -> tuple[Tensor, Preprocessing]:
    """All images of such a folder, uint8 (N, C, H, W), as large as the first unless the options say more.

    Raises:
        DataError: one cannot be read.
        OptionError: a mean, std or size that can never work.
    """
    tree = FolderTree(Path(options.source or ""))
    names = tree.names()[: min(UNLABELLED, options.limit or UNLABELLED)]
    wanted = replace(options, source=None).wanted(model)
    first = decode(tree, names[0], wanted.channels, wanted.size)
    size = (first.shape[1], first.shape[2])
    pixels = decode_all(tree, names, first.shape[0], size, task="decode", progress=reporter)
    mean, std = statistics(pixels)
    return pixels, Preprocessing(wanted.mean or mean, wanted.std or std, size, first.shape[0])


def load_any(model: str | nn.Module | Graph, options: DataOptions, reporter: Reporter) -> Data | None:
    """The dataset that options name, with labels or without; None if they name none. Raises as `DataOptions.load` does."""
    return unlabelled_data(model, options, reporter) if is_flat(options.source) else options.load(model, reporter)


def unlabelled_data(model: str | nn.Module | Graph, options: DataOptions, reporter: Reporter) -> Data:
    """Such a folder as a dataset; a fifth of the images, evenly spread, are its test split. `answered` gives it labels."""
    pixels, preprocessing = flat_images(model, options, reporter)
    step = round(1 / TEST_SHARE)
    held = torch.arange(len(pixels)) % step == step - 1
    held[-1] = True
    train = pixels[~held] if bool((~held).any()) else pixels
    parts = [MemorySplit(part, torch.zeros(len(part), dtype=torch.int64), ("",), preprocessing) for part in (train, pixels[held])]
    return Data(str(options.source), parts[0], parts[1], truth="none")


def answered(data: Data, graph: Graph, reporter: Reporter) -> Data:
    """Return the images with the model's own answers for labels, so that accuracy is agreement with it.

    A model whose output is no row of scores for each image has no answers of that kind: its data stay without labels.
    """
    if data.truth != "none":
        return data
    with reporter.stage("ask the original"):
        train, test = (_answers(graph, split) for split in (data.train, data.test))
    if train is None or test is None:
        return data
    classes = tuple(map(str, range(train[1])))
    parts = [
        MemorySplit(_pixels(split), labels, classes, split.preprocessing)
        for split, labels in ((data.train, train[0]), (data.test, test[0]))
    ]
    return Data(data.name, parts[0], parts[1], data.flip, truth="answers")


def _pixels(split: Split) -> Tensor:
    return next(iter(split.batches([torch.arange(len(split))])))


def _answers(graph: Graph, split: Split) -> tuple[Tensor, int] | None:
    """The best class of each image, and how many classes there are; None where the outputs are no scores of classes."""
    found, step = [], len(graph.example_inputs[0]) if graph.example_inputs else BATCH
    for index in torch.arange(len(split)).split(BATCH):
        images = split.preprocessing.normalise(next(iter(split.batches([index]))))
        try:
            scores = _scores(graph, images)
        except (IrtoolError, RuntimeError, ValueError, AssertionError):
            scores = torch.cat([_scores(graph, _padded(part, step))[: len(part)] for part in images.split(step)])
        if scores.ndim != 2 or len(scores) != len(images) or scores.shape[1] < 2:
            return None
        found.append(scores)
    whole = torch.cat(found)
    return whole.argmax(1), whole.shape[1]


def _scores(graph: Graph, images: Tensor) -> Tensor:
    """The first output, with axes of one entry behind the classes taken away; an empty tensor where there are several outputs."""
    outputs = tensors_of(graph.run(images))
    if len(outputs) != 1:
        return torch.empty(0)
    scores = outputs[0].detach()
    return scores.flatten(1) if scores.ndim > 2 and set(scores.shape[2:]) == {1} else scores


def _padded(images: Tensor, count: int) -> Tensor:
    return torch.cat([images, images[-1:].expand(count - len(images), *images.shape[1:])]) if len(images) < count else images
