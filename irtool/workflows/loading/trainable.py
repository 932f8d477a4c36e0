"""Beginning of a training stage: a model that can be trained, and what tells its data from others."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch

from irtool.errors import OptionError
from irtool.hosts.torch.graph import FxGraph
from irtool.train import Data
from irtool.train.data.image_files import content_of
from irtool.train.data.sources import named_sets
from irtool.workflows.loading.data import example_shapes
from irtool.workflows.loading.models import graph_of, onnx_file, saved_model


def trainable(model: str, weights: Path | None, data: Data, given: Any = (), seed: int = 0) -> FxGraph:
    """Build or load a model to train or to learn from. Fresh weights follow from the seed.

    Raises:
        OptionError: it is an ONNX file.
        IrtoolError: see `graph_of`.
    """
    if onnx_file(model) is not None:
        raise OptionError("an ONNX file cannot be trained", where=model, remedy="Name the PyTorch model that it came from.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cast(FxGraph, graph_of(model, weights, example_shapes(data, given, own_batch=saved_model(model) is not None)))


def data_stamp(source: str | None) -> str | None:
    """A fingerprint of the data; None for those that are known by name."""
    return None if source is None or source.lower().replace("-", "") in named_sets() else content_of(Path(source))
