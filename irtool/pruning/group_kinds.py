"""The two balances of a grouped convolution: whole groups go, or equally many channels of each.

Engines compute a group's channels in blocks. Groups of 8 that lose half of their channels take as long as before in MNN, those of 16 in
onnxruntime (`docs/widths.md`), while half of the groups takes half of the time. Wide groups lose channels for less: what is left is a
block, and their cost shrinks with the square.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from irtool.channels.groups import ChannelGroups
from irtool.channels.whole import families, group_tables
from irtool.pruning.plan import GroupKind, Rounding

NARROW = 32
"""Groups of fewer channels than this have no narrower width that both engines like."""
_FEW = 4
"""With fewer groups than this, to remove one removes too much at once."""


def whole_groups(groups: ChannelGroups, kind: GroupKind, budget: Mapping[str, float], round_to: Rounding) -> frozenset[str]:
    """The names of the grouped convolutions whose groups go as a whole.

    Args:
        groups: the channel groups without such convolutions.
        kind: `"whole"`: all that can; `"even"`: none; `"auto"`: with a budget and widths that engines like, those of narrow groups.
        budget, round_to: of the plan.
    """
    if kind == "even" or (kind == "auto" and not (budget and round_to == "auto")):
        return frozenset()
    tables = group_tables(groups.labels) if groups.labels.balances else {}
    chosen: list[str] = []
    for family in families(groups.labels, groups.group) if tables else []:
        narrow = all(max(widths) < NARROW and len(tables[name][0]) >= _FEW for name, widths in family.items())
        if kind == "whole" or narrow:
            chosen += family
    return frozenset(chosen)


def coarsest_first(groups: ChannelGroups, whole: frozenset[str]) -> list[frozenset[str]]:
    """Sets of convolutions whose groups go as a whole, to be tried one after the other: all, then fewer and fewer, the families that lose most
    at once left out first, and at last none.

    Args:
        groups: the channel groups without such convolutions.
        whole: all of them.
    """
    found = [family for family in families(groups.labels, groups.group) if whole.issuperset(family)] if whole else []
    found.sort(key=lambda family: -max(max(widths) for widths in family.values()))
    tried, left_out = [whole], 1
    while tried[-1]:
        tried.append(frozenset[str]().union(*found[left_out:]))
        left_out *= 2
    return tried


def channels_at_once(groups: ChannelGroups) -> NDArray[np.int64]:
    """Count the channels of one layer that each group takes if it holds whole groups of a convolution, else 1. Shape (groups,)."""
    found = np.ones(groups.count, np.int64)
    tables = group_tables(groups.labels) if groups.whole else {}
    inside = [groups.group[np.concatenate(tables[name], axis=1)].reshape(-1) for name in groups.whole]
    joined = np.unique(np.concatenate(inside)) if inside else np.zeros(0, np.int64)
    for layer in groups.layers if inside else []:
        own = groups.group[layer.labels.numpy()]
        found = np.maximum(found, np.bincount(own, minlength=groups.count))
    single = np.ones(groups.count, np.int64)
    single[joined] = found[joined]
    return single
