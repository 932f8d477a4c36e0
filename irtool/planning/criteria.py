"""Criteria: how much a channel matters. A criterion is a function in a registry; users may add theirs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from irtool.analysis.groups import ChannelGroups
from irtool.analysis.labels import Key

Scores = NDArray[np.float64]
Criterion = Callable[[ChannelGroups, int], Scores]
"""(groups, seed) -> one score a label, NaN where the criterion has nothing to say. Higher means more important."""

CRITERIA: dict[str, Criterion] = {}


def criterion(name: str) -> Callable[[Criterion], Criterion]:
    """Register a criterion under a name.

    >>> @criterion("first")
    ... def first(groups, seed):
    ...     return -np.arange(groups.labels.count, dtype=float)
    >>> _ = CRITERIA.pop("first")
    """

    def register(function: Criterion) -> Criterion:
        CRITERIA[name] = function
        return function

    return register


@criterion("bn_scale")
def bn_scale(groups: ChannelGroups, seed: int) -> Scores:
    """|gamma| of the batch norms that read a channel (network slimming, Liu et al. 2017)."""
    scores = _unscored(groups)
    for node in groups.graph.nodes:
        weight = node.get("weight")
        if node.op == "BatchNormalization" and weight is not None and (weight.name, 0) in groups.labels.axes and weight.data is not None:
            scores[groups.labels.axes[weight.name, 0].numpy()] = weight.data.abs().double().cpu().numpy()
    return scores


@criterion("l1")
def l1(groups: ChannelGroups, seed: int) -> Scores:
    """Mean |w| of the filter that makes a channel, over the layer's mean (Li et al. 2017, made comparable between layers)."""
    return _filter_norm(groups, 1)


@criterion("l2")
def l2(groups: ChannelGroups, seed: int) -> Scores:
    """Root mean square of the filter that makes a channel, over the layer's mean."""
    return _filter_norm(groups, 2)


@criterion("random")
def random(groups: ChannelGroups, seed: int) -> Scores:
    """Uniform random scores from a seed: the baseline that every criterion must beat."""
    return np.random.default_rng(seed).random(groups.labels.count)


def group_scores(groups: ChannelGroups, name: str, seed: int) -> Scores:
    """The mean of a criterion over each group's members; NaN for a group that has no scored member. Shape (groups,)."""
    scores = CRITERIA[name](groups, seed)
    known = ~np.isnan(scores)
    total = np.bincount(groups.group[known], scores[known], minlength=groups.count)
    number = np.bincount(groups.group[known], minlength=groups.count)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: Scores = total / number
    return mean


def _unscored(groups: ChannelGroups) -> Scores:
    return np.full(groups.labels.count, np.nan)


def _filter_norm(groups: ChannelGroups, order: int) -> Scores:
    """Norms along output axes; along input axes for groups that have no output of their own (a channel selection's copies)."""
    made = {layer.key for layer in groups.layers}
    outputs = _axis_norms(groups, order, lambda key, labels: key in made)
    scored = np.bincount(groups.group[~np.isnan(outputs)], minlength=groups.count) > 0
    lacking = ~scored & ~groups.pinned
    if not lacking.any():
        return outputs
    # The input axis of a grouped convolution is left out: its filters are scored where they are made.
    inputs = _axis_norms(
        groups, order, lambda key, labels: key not in made and isinstance(key[1], int) and bool(lacking[groups.group[labels]].any())
    )
    return np.where(scored[groups.group], outputs, inputs)


def _axis_norms(groups: ChannelGroups, order: int, wanted: Callable[[Key, NDArray[np.int64]], bool]) -> Scores:
    scores = _unscored(groups)
    for key, labels in groups.labels.axes.items():
        name, axis = key
        data = groups.graph.real(name)
        if data is None or data.dim() < 2 or labels.numel() < 2:
            continue
        if wanted(key, labels.numpy()):
            norm = _entry_norms(data, axis if isinstance(axis, int) else axis[0], order, labels.numel())
            scores[labels.numpy()] = norm / max(float(norm.mean()), 1e-30)
    return scores


def _entry_norms(data: torch.Tensor, axis: int, order: int, entries: int) -> Scores:
    """Mean |w| (order 1) or root mean square (order 2) of each entry of an axis; up to a factor that is the same for all."""
    flat = data.detach().movedim(axis, 0).reshape(data.shape[axis], -1)
    norm: Scores = torch.linalg.vector_norm(flat, order, dim=1).double().cpu().numpy() / flat.shape[1] ** (1 / order)
    return np.resize(norm, entries)
