"""Widths that engines like: the multiple that each layer's channels are kept at.

onnxruntime computes in blocks of 16 channels where AVX-512 is there, and of 8 where it is not; MNN in blocks of 8. A block that is
partly filled costs as much as a full one, and in onnxruntime a layer whose channels are no multiple of 4 leaves the blocked layout:
61 channels then take longer than 64, and depthwise layers twice as long. A grouped convolution is blocked where each of its groups
is a multiple of 16. `docs/widths.md` has the times of 1 to 64 channels, made by `bench/widths.py`.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from irtool.channels.groups import ChannelGroups

Ints = NDArray[np.int64]
Rounding = int | Literal["auto"]

_TOTAL = ((64, 16), (32, 8), (8, 4))
"""A layer of at least so many channels keeps a multiple of this. Coarser steps would leave narrow layers no choice, and below 8 channels
an engine's time grows evenly."""
_GROUP = ((32, 16), (16, 8), (8, 4))
"""The same for one group's channels, where there are groups."""
FINEST = 4
"""Multiples of this stay in onnxruntime's blocked layout."""


def steps_of(groups: ChannelGroups, round_to: Rounding, finer: int = 1) -> Ints:
    """The multiple that each layer keeps once it loses channels, in the order of `groups.layers`, shape (layers,).

    Args:
        groups: the channel groups.
        round_to: one multiple for all, or `"auto"`: for each layer the one that suits its width.
        finer: divides the steps of `"auto"`, where coarse ones do not reach a budget.
    """
    totals = np.array([int((layer.labels >= 0).sum()) for layer in groups.layers], np.int64)
    if round_to != "auto":
        return np.full(totals.size, round_to, np.int64)
    steps = np.array([max(_step(total, _TOTAL) // finer, 1) for total in totals.tolist()], np.int64)
    for node, table in groups.labels.balances:
        inside = table.numpy()
        parts, width = inside.shape
        for number, layer in enumerate(groups.layers):
            if np.isin(layer.labels.numpy(), inside[inside >= 0]).any():
                wide = max(_step(width, _GROUP) // finer, 1) if node.op in ("Conv", "ConvTranspose") else 1
                steps[number] = _in_parts(int(totals[number]), parts, width, int(steps[number]), wide)
    return steps


def _step(width: int, table: tuple[tuple[int, int], ...]) -> int:
    return next((step for least, step in table if width >= least), 1)


def _in_parts(total: int, parts: int, width: int, step: int, wide: int) -> int:
    """A step that parts which lose equally many can take: whole steps of each part, and of the layer as far as both can be had."""
    while step > 1:
        both = math.lcm(parts * wide, step)
        if both < total and both <= parts * (width - 1):
            return both
        step //= 2
    return parts * wide if wide < width else parts
