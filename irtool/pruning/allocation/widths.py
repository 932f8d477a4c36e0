"""Widths that engines like: the multiple that each layer's channels are kept at.

onnxruntime computes in blocks of 16 channels where AVX-512 is there, and of 8 where it is not; MNN in blocks of 8. A block that is
partly filled costs as much as a full one, and in onnxruntime a layer whose channels are no multiple of 4 leaves the blocked layout:
61 channels then take longer than 64, and depthwise layers twice as long. A grouped convolution is blocked where each of its groups
is a multiple of 16. `docs/widths.md` has the times of 1 to 64 channels, made by `bench/widths.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from irtool.channels.groups import ChannelGroups
from irtool.pruning.plan import Rounding

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

_TOTAL = ((32, 16), (8, 4))
"""A layer of at least so many channels keeps a multiple of this. In onnxruntime 20 to 32 channels take the same time, so that finer
steps of a wide layer gain nothing; coarser ones would leave narrow layers no choice, and below 8 channels time grows evenly."""
_GROUP = ((32, 16), (16, 8), (8, 4))
"""Multiples of one group's channels, where there are groups."""
FINER = "finer multiples of channels than engines like were needed to reach {}: narrow layers may run slowly"
_MISS = 0.1
"""Share of the channels asked for that may be missed, or taken too many, before finer steps are tried."""
_CLOSE, _TRIES = 0.02, 7
"""Share of the channels asked for that is near enough, and the number of ratios that are tried."""


def steps_of(groups: ChannelGroups, round_to: Rounding, finer: int = 1) -> Ints:
    """The multiple that each layer keeps once it loses channels, in the order of `groups.layers`, shape (layers,).

    Args:
        groups: the channel groups.
        round_to: one multiple for all, or `"auto"`: for each layer the one that suits its width.
        finer: divides the steps of `"auto"`, where coarse ones do not reach what was asked for.
    """
    totals = [int((layer.labels >= 0).sum()) for layer in groups.layers]
    if round_to != "auto":
        return np.full(len(totals), round_to, np.int64)
    part_of = np.full(groups.group.size, -1, np.int64)
    for number, (_, table) in enumerate(groups.labels.balances):
        inside = table.numpy()
        part_of[inside[inside >= 0]] = number
    found = []
    for total, layer in zip(totals, groups.layers, strict=True):
        step = max(_step(total, _TOTAL) // finer, 1)
        labels = layer.labels.numpy().reshape(-1)
        family = int(part_of[labels[labels >= 0]].max(initial=-1))
        if family >= 0:
            node, table = groups.labels.balances[family]
            parts, width = table.shape
            if node.name in groups.whole:
                found.append(_in_whole_parts(total, width, step))
                continue
            wide = max(_step(width, _GROUP) // finer, 1) if node.op in ("Conv", "ConvTranspose") else 1
            step = _in_parts(total, parts, width, step, wide)
        found.append(step)
    return np.array(found, np.int64)


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


def _in_whole_parts(total: int, width: int, step: int) -> int:
    """A step that whole parts of this width can take: of the layer's step as far as there is room for it."""
    while step > 1 and math.lcm(width, step) >= total:
        step //= 2
    return math.lcm(width, max(step, 1))


def finer_steps(round_to: Rounding) -> tuple[int, ...]:
    """Divisors of the steps, one after the other, until they reach what was asked for."""
    return (1, 2, 4, 16) if round_to == "auto" else (1,)


def in_steps(groups: ChannelGroups, chosen_by: Callable[..., Mask], ratio: float) -> tuple[Mask, bool]:
    """The groups that go where layers keep multiples of their steps, and whether these had to be finer than the widths suggest.

    Rounding alone would only give channels back. So the ratio is raised until as many channels go as without it, as nearly as may be.

    Args:
        groups: the channel groups.
        chosen_by: for a ratio and the layers' steps (None for single channels) the groups that go, bool, shape (groups,).
        ratio: what was asked for.
    """
    single = chosen_by(ratio, None)
    aim = _channels(groups, single)
    for finer in finer_steps("auto"):
        steps = steps_of(groups, "auto", finer)
        if (steps <= 1).all():
            break
        found, miss = _nearest(groups, partial(chosen_by, steps=steps), ratio, aim)
        if miss <= _MISS * aim:
            return found, finer > 1
    return single, bool((steps_of(groups, "auto") > 1).any() and aim)


def _nearest(groups: ChannelGroups, chosen_by: Callable[[float], Mask], ratio: float, aim: int) -> tuple[Mask, float]:
    """By halving: the choice that removes nearest to `aim` channels, and by how many it misses."""
    low, high, asked = ratio, min(2 * ratio, (1 + ratio) / 2), ratio
    best, miss = np.zeros(groups.count, bool), float(aim)
    for _ in range(_TRIES):
        found = chosen_by(asked)
        gone = _channels(groups, found)
        if abs(gone - aim) < miss or (gone == aim):
            best, miss = found, abs(gone - aim)
        if miss <= _CLOSE * aim:
            break
        low, high = (asked, high) if gone < aim else (low, asked)
        asked = (low + high) / 2
    return best, miss


def _channels(groups: ChannelGroups, remove: Mask) -> int:
    """Channels that go, over all layers."""
    return sum(int(remove[groups.group[layer.labels.numpy()]].sum()) for layer in groups.layers)
