"""Means measured on data: what chosen layers read, over calibration batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from irtool.channels.labels import Labels
from irtool.ir.graph import Node


def calibrate(labels: Labels, layers: Iterable[Node], batches: Iterable[Any]) -> dict[str, Tensor]:
    """The mean of each channel that a layer reads over calibration batches (inputs of the graph), in eval mode; by the layer's name.

    Means have the shape of the input's labels.
    """
    chosen = {node.name: node for node in layers if node.input.producer is not None}
    sums: dict[str, Tensor] = {}
    count = 0

    def seen(name: str, tensor: Tensor) -> None:
        mean = _mean(tensor, labels.values[chosen[name].input].shape)
        sums[name] = sums.get(name, torch.zeros_like(mean)) + mean

    for batch in batches:
        labels.graph.observe_inputs(tuple(batch) if isinstance(batch, tuple | list) else (batch,), list(chosen.values()), seen)
        count += 1
    return {name: total.cpu() / max(count, 1) for name, total in sums.items()}


def _mean(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """The mean over the axes that carry no channels."""
    axes = [axis for axis, size in enumerate(shape) if size == 1]
    return tensor.double().mean(axes, keepdim=True) if axes else tensor.double()
