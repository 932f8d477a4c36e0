"""Gradients of gates: how a loss would change if a channel were switched off wherever it is read.

Imagine a gate of 1 in front of every layer that reads a channel, the same gate in all of them. Its gradient for one image is the
sum over these layers and over positions of input times gradient. The sum comes before any square or absolute value, so that what
coupled layers lose together is counted as one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from irtool.channels.groups import ChannelGroups
from irtool.channels.labels import Labels
from irtool.errors import DataError
from irtool.ir.graph import Node, Value
from irtool.nests import floats_in
from irtool.ops.properties import SUMS_CHANNELS
from irtool.ops.rules.context import varying
from irtool.ops.rules.opaque import short_name
from irtool.pruning.absorb.measure import calibrate
from irtool.pruning.criteria.criteria import Batches


@dataclass(frozen=True)
class Reading:
    """A node that sums over channels, and which of those that arrive end there.

    Attributes:
        node: the node; what it reads is its first input that is no parameter.
        labels: the labels that arrive, of the value's rank; -1 for those that do not end there.
    """

    node: Node
    labels: Tensor

    @property
    def value(self) -> Value:
        """The value that is read."""
        return next(value for value in self.node.inputs if not value.is_param)


def readings(labels: Labels) -> list[Reading]:
    """Find where channels end: every layer that sums over some."""
    found = []
    for node in labels.graph.nodes:
        summed = node.op == "Reduce" and short_name(node.callee) == "sum" and labels.decisions.get((node.name, "alone"))
        if (node.op not in SUMS_CHANNELS and not summed) or labels.decisions.get((node.name, "depthwise")):
            continue
        if all(value.is_param for value in node.inputs):
            continue
        leaving = torch.cat([part.reshape(-1) for output in node.outputs for part in labels.parts(output)])
        value = next(value for value in node.inputs if not value.is_param)
        for arriving in labels.parts(value):
            ending = torch.where(torch.isin(arriving, leaving), -1, arriving)
            if bool((ending >= 0).any()):
                found.append(Reading(node, ending))
    return found


def gate_gradients(groups: ChannelGroups, batches: Batches, seed: int, *, centred: bool, squared: bool = False) -> Iterator[Tensor]:
    """For each batch the gradient of every group's gate in every image, float64, shape (images, groups); NaN for groups that no layer reads.

    The loss is `sampled_loss`. Weights and buffers stay as they are.

    Args:
        groups: the channel groups of a torch graph.
        batches: images.
        seed: of the labels that are drawn.
        centred: switch channels to their mean instead of to 0: the mean goes into the next bias anyway.
        squared: give the sum of squares of the single terms in place of their sum.
    """
    graph, found = groups.graph, [reading for reading in readings(groups.labels) if removable(groups, reading)]
    means = calibrate(groups.labels, {reading.node.name: reading.node for reading in found}.values(), batches) if centred else {}
    sums = _Sums(found, groups, means, squared)
    generator = torch.Generator().manual_seed(seed)
    unread = torch.ones(groups.count, dtype=torch.bool)
    for reading in found:
        unread[torch.from_numpy(groups.group)[reading.labels[reading.labels >= 0]]] = False
    reads = list({reading.node: reading.value for reading in found}.items())
    for batch in batches:
        sums.start(len(batch[0]))
        if not found:  # nothing that can go is read by a layer: a plan says by itself what holds it
            yield torch.full_like(sums.gradients, torch.nan)
            continue
        if not graph.backward(reads, batch, lambda outputs: sampled_loss(outputs, generator), sums.add):
            raise DataError("no output depends on a channel that can go", where="data", remedy="Use a criterion that reads weights, as l2.")
        gradients = sums.gradients
        gradients[:, unread] = torch.nan
        yield gradients


def removable(groups: ChannelGroups, reading: Reading) -> bool:
    """Whether any channel that ends there can go."""
    ending = reading.labels[reading.labels >= 0].numpy()
    return bool((~groups.pinned[groups.group[ending]]).any())


def sampled_loss(outputs: Any, generator: torch.Generator) -> Tensor | None:
    """A loss without labels, whose squared gradients have the Fisher information of the net's own predictions as their mean.

    Where the only output is a table (images, classes), it is the cross-entropy with labels drawn from the net's softmax (its
    logarithm, where rows are probabilities already). Any other outputs are taken as means of normal distributions: the loss is
    `sum z * y / (s * sqrt(n))` with z drawn from N(0, 1), s the standard deviation of that output over the batch and n its entries
    for one image, so that the squared gradient's mean is that of a squared error in units of s. Summed over images.

    Raises:
        DataError: an output is not finite.
    """
    tensors = [output for output in floats_in(outputs) if output.requires_grad]
    if not tensors:
        return None
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise DataError(
            "the model gives values that are not finite on these images",
            where="data",
            remedy="Look at their preprocessing, and at the model's weights.",
        )
    if len(tensors) == 1 and tensors[0].dim() == 2 and tensors[0].shape[1] > 1:
        scores = tensors[0]
        chances = scores.detach()
        if not bool((chances >= 0).all() and ((chances.sum(1) - 1).abs() < 1e-3).all()):
            chances = scores.detach().double().softmax(1)
        else:
            scores = scores.clamp_min(1e-12).log()
        drawn = torch.multinomial(chances.double().cpu(), 1, generator=generator)[:, 0].to(scores.device)
        return F.cross_entropy(scores, drawn, reduction="sum")
    parts = []
    for tensor in tensors:
        unit = float(tensor.detach().double().std()) if tensor.numel() > 1 else 1.0
        noise = torch.randn(tensor.shape, generator=generator).to(tensor)
        entries = max(tensor[:1].numel(), 1) if tensor.dim() else 1  # a number has no axis of images
        parts.append((noise * tensor).sum() / (max(unit, 1e-12) * entries**0.5))
    return torch.stack(parts).sum()


class _Sums:
    """Adds up, for every group, input times gradient at all that read it."""

    def __init__(self, found: list[Reading], groups: ChannelGroups, means: dict[str, Tensor], squared: bool) -> None:
        self._squared, self._count, self._means, self._groups = squared, groups.count, means, torch.from_numpy(groups.group)
        self._readings: dict[str, list[Reading]] = {}
        for reading in found:
            self._readings.setdefault(reading.node.name, []).append(reading)
        self.gradients = torch.zeros(0)

    def start(self, images: int) -> None:
        """Begin a batch."""
        self.gradients = torch.zeros(images, self._count, dtype=torch.float64)

    def add(self, name: str, read: Tensor, gradient: Tensor) -> None:
        """Take in what the node of this name read, and its gradient."""
        for reading in self._readings[name]:
            labels, images = reading.labels, len(self.gradients)
            if labels.shape[0] > 1 or read.shape[0] % images:
                images = 1  # channels along the first axis, or a batch that was cut otherwise: no image by itself
            terms = gradient * read
            summed = _summed(terms.square() if self._squared else terms, labels, images)
            mean = self._means.get(reading.node.name)
            if mean is not None and mean.shape == labels.shape:
                summed = summed - mean.reshape(-1).to(summed) * _summed(gradient, labels, images)
            entries = labels.reshape(-1)
            ends = entries >= 0
            self.gradients[:images].index_add_(1, self._groups[entries[ends]], summed[:, ends])


def _summed(tensor: Tensor, labels: Tensor, images: int) -> Tensor:
    """Sums over positions, float64, shape (images, entries of the labels)."""
    parts = tensor.reshape(images, -1, *tensor.shape[1:]) if labels.shape[0] == 1 else tensor.unsqueeze(0)
    kept = {axis + 1 for axis in varying(labels)}
    over = [axis for axis in range(1, parts.dim()) if axis not in kept]
    found = parts.sum(over) if over else parts
    return found.reshape(images, -1).double().cpu()
