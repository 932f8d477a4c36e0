"""Measured sensitivity: what the outputs lack when some of one family's channels are gone and all others are there.

Each family is pruned alone, a few numbers of channels after each other, the least important first; what these channels were on average goes
into the next layer's bias. It is the table that SPDY (Frantar and Alistarh 2022) and HALP (Shen et al. 2022) choose from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from irtool.channels.groups import ChannelGroups
from irtool.errors import ProofError
from irtool.progress import Progress, Status, silent
from irtool.pruning.absorb.absorb import absorption, measured_means
from irtool.pruning.absorb.bias import add_biases
from irtool.pruning.allocation.stacks import Room, Stack
from irtool.pruning.criteria.criteria import Batches
from irtool.pruning.reconstruct.distance import Aims
from irtool.pruning.slicing.slicing import slice_channels

SHARES = (0.125, 0.25, 0.5, 0.75, 0.875, 1.0)
"""Parts of what may go of a family that are measured."""
BATCHES = 2
"""Batches that it is measured on, at most."""


@dataclass(frozen=True)
class Curve:
    """The measured losses of one family.

    Attributes:
        units: how many of its units go, from 0 up, shape (levels,).
        loss: what the outputs lack then, shape (levels,); it never falls.
    """

    units: NDArray[np.int64]
    loss: NDArray[np.float64]


def sensitivity(groups: ChannelGroups, stacks: Sequence[Stack], room: Room, batches: Batches, progress: Progress = silent) -> list[Curve]:
    """Measure every family, one after the other."""
    graph, some = groups.graph, list(batches)[:BATCHES]
    aims = Aims.of(graph, some)
    means = measured_means(groups.labels, some)
    found = []
    for number, stack in enumerate(stacks):
        progress(Status("measure what each family loses", number, len(stacks)))
        counts, losses = [0], [0.0]
        for count in _levels(stack, room):
            keep = np.ones(groups.count, bool)
            keep[np.concatenate(stack.units[:count])] = False
            try:
                made = slice_channels(graph, groups.labels, keep[groups.group])
            except ProofError:
                break  # it cannot go alone
            new, biases = made.fill(), absorption(made.labels, made.keep, means=means).biases
            new = add_biases(new, made.labels, made.keep, biases) if biases else new
            counts.append(count)
            losses.append(max(aims.distance(new), losses[-1]))
        found.append(Curve(np.array(counts), np.array(losses)))
    progress(Status("measure what each family loses", len(stacks), len(stacks)))
    return found


def _levels(stack: Stack, room: Room) -> list[int]:
    """Numbers of units that may go and leave widths of the steps asked for: those nearest below the shares."""
    after = room.level[stack.touched] - stack.drop.cumsum(0)
    fits = (after >= room.least[stack.touched]).all(1) & (after % room.step[stack.touched] == 0).all(1)
    counts = np.flatnonzero(fits) + 1
    wanted = [int(share * counts[-1]) for share in SHARES] if counts.size else []
    return sorted({int(counts[counts <= count][-1]) for count in wanted if (counts <= count).any()})
