"""Reasons and notes of a plan: for layers that are left alone, and for scores that cannot tell channels apart."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from irtool.channels.groups import ChannelGroups
from irtool.channels.labels import Layer
from irtool.pruning.criteria.criteria import Scores
from irtool.pruning.slicing.plan_slicing import own_groups


def reason_of(groups: ChannelGroups, scores: Scores, layer: Layer, *, asked: bool, gone: bool, options: Mapping[str, Any]) -> str:
    """Say why a layer was left alone, wholly or in part; empty if nothing held it back.

    Args:
        groups: the channel groups.
        scores: of the groups.
        layer: the layer.
        asked: whether any of its channels were to go.
        gone: whether any did.
        options: the plan's `criterion`, `min_channels` and `round_to`.
    """
    own = own_groups(groups, layer)
    pinned = np.flatnonzero(groups.pinned[own])
    if pinned.size:
        reason = str(groups.reasons[int(own[pinned[0]])])
        return reason if pinned.size == own.size else f"{pinned.size} channels stay: {reason}"
    if np.isnan(scores[own]).all():
        return f"{options['criterion']} has no score here"
    if own.size > 1 and (own == own[0]).all():
        return f"all its channels are one group, which cannot go{_joined(groups, layer)}"
    return _unmet(groups, layer, options) if asked and not gone else ""


def _unmet(groups: ChannelGroups, layer: Layer, options: Mapping[str, Any]) -> str:
    """Explain why a layer loses nothing though some of its channels were to go."""
    own = layer.labels.numpy()
    balanced = next((node for node, table in groups.labels.balances if np.isin(table.numpy(), own).any()), None)
    limits = [f"{name}={value}" for name in ("min_channels", "round_to") if (value := options[name]) != 1]
    if balanced is not None:
        return f"nothing can go that leaves {' and '.join(['all parts equally wide', *limits])} (at {balanced.location})"
    return f"nothing can go that leaves {' and '.join(limits) or 'the axes whole that its channels are split into'}"


_SEPARATED = 0.05
"""Sparse training leaves next to nothing of the scales that go; without it they hold a fifth and more of the sum."""


def unseparated(groups: ChannelGroups, scores: Scores, remove: NDArray[np.bool_]) -> tuple[str, ...]:
    """That the scales do not tell which channels are needed, if so."""
    known = ~np.isnan(scores) & ~groups.pinned
    share = float(scores[known & remove].sum()) / max(float(scores[known].sum()), 1e-300)
    if share <= _SEPARATED:
        return ()
    return (
        f"bn_scale removes scales that hold {100 * share:.0f} % of the sum of all: this net was not trained to separate them "
        "(irtool.train.sparse does), and what goes is much like what stays; fisher with data=images tells them apart",
    )


def _joined(groups: ChannelGroups, layer: Layer) -> str:
    """Name the node at which the first two of a layer's groups that became one met; nothing if that was no single meeting."""
    meetings, own, size = groups.labels.meetings, layer.labels.numpy(), groups.group.size
    ends = [np.stack([part.reshape(-1) for part in np.broadcast_arrays(a.numpy(), b.numpy())]) for _, a, b in meetings]

    def joined(count: int) -> bool:
        pairs = np.concatenate([np.empty((2, 0), np.int64), *ends[:count]], 1)
        pairs = pairs[:, (pairs >= 0).all(0)]
        links = coo_array((np.ones(pairs.shape[1], bool), (pairs[0], pairs[1])), shape=(size, size))
        return np.unique(connected_components(links, directed=False)[1][own]).size < own.size

    if not joined(len(meetings)):
        return ""
    first = bisect.bisect_left(range(len(meetings) + 1), True, key=joined) - 1
    return f": they meet (at {meetings[first][0].location})"
