"""Statistics of what layers read, channel by channel, from forward runs alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from irtool.channels.groups import ChannelGroups
from irtool.channels.labels import Labels
from irtool.ops.rules.context import varying
from irtool.pruning.absorb.contribution import weight_of
from irtool.pruning.criteria.criteria import Batches
from irtool.pruning.criteria.gates import Reading, readings, removable


@dataclass
class Seen:
    """The values of one reader's channels, summed up over batches and positions; one entry a label that arrives.

    Attributes:
        count: values of each channel so far.
        sums, squares, nonzero: of these.
    """

    count: int = 0
    sums: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))
    squares: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))
    nonzero: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))

    @property
    def variance(self) -> Tensor:
        """Of each channel."""
        return (self.squares / self.count - (self.sums / self.count).square()).clamp_min(0)

    @property
    def alive(self) -> Tensor:
        """The share of values that are not zero."""
        return self.nonzero / self.count

    def add(self, value: Tensor, labels: Tensor) -> None:
        """Take in a value, of whose axes those that the labels vary along are kept."""
        kept = varying(labels)
        over = [axis for axis in range(value.dim()) if axis not in kept]
        table = value.double().cpu().permute(*over, *kept).reshape(-1, labels.numel())
        self.count += len(table)
        self.sums, self.squares = self.sums + table.sum(0), self.squares + table.square().sum(0)
        self.nonzero = self.nonzero + (table != 0).double().sum(0)


def read_values(groups: ChannelGroups, batches: Batches) -> Iterator[tuple[Reading, Seen]]:
    """Run the batches, and give every reader of a channel that can go with what it read."""
    found = [reading for reading in readings(groups.labels) if removable(groups, reading) and reading.value.producer is not None]
    by_name: dict[str, list[tuple[Reading, Seen]]] = {}
    for reading in found:
        producer = reading.value.producer
        assert producer is not None
        by_name.setdefault(producer.name, []).append((reading, Seen()))

    def seen(name: str, value: Tensor) -> None:
        for reading, sums in by_name[name]:
            if len(value.shape) == reading.labels.dim() and value.is_floating_point():
                sums.add(value, reading.labels)

    for batch in batches:
        groups.graph.observe(batch, set(by_name), seen)
    return iter([(reading, sums) for pairs in by_name.values() for reading, sums in pairs if sums.count])


def reader_energy(labels: Labels, reading: Reading) -> Tensor:
    """The sum of squared weights that read each label that arrives, (labels,); 1 where a node has no such weight."""
    entries = reading.labels.reshape(-1)
    weight = weight_of(reading.node)
    for (name, axis), own in labels.axes.items():
        if weight is None or name != weight.name or weight.data is None or own.numel() != entries.numel():
            continue
        if not torch.isin(own[own >= 0], entries).all() or bool((entries < 0).all()):
            continue
        data = labels.graph.real(name)
        assert data is not None
        squares = data.detach().double().square()
        if isinstance(axis, int):
            return squares.transpose(0, axis).flatten(1).sum(1).cpu()
        place, parts = axis
        rows = squares.reshape(parts, -1, *squares.shape[1:]).movedim(place + 1, 1)
        return rows.flatten(2).sum(2).flatten().cpu()
    return torch.ones(entries.numel(), dtype=torch.float64)
