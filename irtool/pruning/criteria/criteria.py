"""Criteria: how much a channel matters. A criterion is a function in a registry; users may add theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from irtool.channels.groups import ChannelGroups
from irtool.channels.labels import Key
from irtool.errors import OptionError, PlanError
from irtool.pruning.plan import check_choice

Scores = NDArray[np.float64]
Reads = Literal["parameters", "activations", "gradients"]
Batches = Sequence[tuple[Any, ...]]
"""Batches of data, each a tuple of the graph's inputs."""


@dataclass(frozen=True)
class Criterion:
    """A way to score channels.

    Attributes:
        name: what plans and messages call it.
        function: gives one score a label, float64, shape (labels,): higher means more important, NaN where it has nothing to say. It
            is called with (groups, seed), and with (groups, seed, batches) if it reads more than parameters.
        reads: what it looks at. `activations` need forward runs on data, `gradients` backward runs too, which ONNX graphs lack.
        inclusive: whether a ratio removes one channel more than its whole number, as the published rule of network slimming does.
    """

    name: str
    function: Callable[..., Scores]
    reads: Reads = "parameters"
    inclusive: bool = False


CRITERIA: dict[str, Criterion] = {}
ENTRY_POINTS = "irtool.criteria"
"""The group of entry points by which another package ships criteria: a name, and the module that registers it."""
Function = TypeVar("Function", bound=Callable[..., Scores])


def criterion(name: str, *, reads: Reads = "parameters", inclusive: bool = False) -> Callable[[Function], Function]:
    """Register a criterion under a name; see `Criterion` for what the function gets and gives.

    >>> @criterion("first")
    ... def first(groups, seed):
    ...     return -np.arange(groups.labels.count, dtype=float)
    >>> _ = CRITERIA.pop("first")

    Raises:
        OptionError: the name is taken, or `reads` is none of its values.
    """
    if reads not in get_args(Reads):
        raise OptionError(f"reads {reads!r} does not exist", remedy=f"Choose one of {', '.join(get_args(Reads))}.")

    def register(function: Function) -> Function:
        if name in CRITERIA and not _is_again(CRITERIA[name].function, function):
            raise OptionError(f"a criterion is called {name!r} already", remedy="Register this one under another name.")
        CRITERIA[name] = Criterion(name, function, reads, inclusive)
        return function

    return register


def _is_again(old: Callable[..., Scores], new: Callable[..., Scores]) -> bool:
    """Whether a function is the same one by its place: a module that is imported anew registers its own again."""
    return (old.__module__, old.__qualname__) == (new.__module__, new.__qualname__) and "<locals>" not in new.__qualname__


def find_criterion(chosen: str | Callable[..., Scores] | Criterion) -> Criterion:
    """The criterion of a name, or the one that a function of (groups, seed) is.

    Raises:
        PlanError: no criterion has that name.
    """
    if isinstance(chosen, Criterion):
        return chosen
    if callable(chosen):
        known = next((entry for entry in CRITERIA.values() if entry.function is chosen), None)
        return known or Criterion(getattr(chosen, "__name__", type(chosen).__name__), chosen)
    check_criterion(chosen)
    return CRITERIA[chosen]


def check_criterion(name: str) -> None:
    """Refuse a name that no criterion has: irtool's own, one that was registered, or one that an installed package offers as an entry point.

    Raises:
        PlanError: it and the names that there are.
    """
    if name not in CRITERIA:
        for point in entry_points(group=ENTRY_POINTS, name=str(name)):
            point.load()  # a module that registers it, or the function itself
    check_choice("criterion", name, CRITERIA)


@criterion("bn_scale", inclusive=True)
def bn_scale(groups: ChannelGroups, seed: int) -> Scores:
    """|gamma| of the batch norms that read a channel (network slimming, Liu et al. 2017)."""
    found = {}
    for node in groups.graph.nodes:
        weight = node.get("weight")
        if node.op == "BatchNormalization" and weight is not None and (weight.name, 0) in groups.labels.axes and weight.data is not None:
            found[weight.name] = (groups.labels.axes[weight.name, 0].numpy(), weight.data.abs().double().cpu().numpy())
    return _means(groups, list(found.values()))


@criterion("bn_output")
def bn_output(groups: ChannelGroups, seed: int) -> Scores:
    """Root mean square of what a ReLU gives behind a batch norm, if that gives the normal distribution that its scale and shift tell.

    E[max(z, 0)^2] = (b^2 + g^2) P(b / |g|) + b |g| p(b / |g|) for z of mean b and standard deviation |g|, with p and P the density and the
    distribution function of the standard normal. A channel with a large scale and a shift far below zero is silent, which `bn_scale`
    does not see. Channels that no batch norm reads have no score.
    """
    found = []
    for node in groups.graph.nodes:
        weight, bias = node.get("weight"), node.get("bias")
        if node.op != "BatchNormalization" or weight is None or bias is None or (weight.name, 0) not in groups.labels.axes:
            continue
        assert weight.data is not None
        assert bias.data is not None
        spread, shift = weight.data.double().abs().clamp_min(1e-30), bias.data.double()
        at = shift / spread
        square = (shift.square() + spread.square()) * torch.special.ndtr(at)
        square += shift * spread * torch.exp(-at.square() / 2) / (2 * torch.pi) ** 0.5
        found.append((groups.labels.axes[weight.name, 0].numpy(), square.clamp_min(0).sqrt().cpu().numpy()))
    return _means(groups, found)


@criterion("l1")
def l1(groups: ChannelGroups, seed: int) -> Scores:
    """Mean |w| of the filter that makes a channel, over the layer's mean (Li et al. 2017, made comparable between layers)."""
    return filter_scores(groups, partial(_entry_norms, order=1))


@criterion("l2")
def l2(groups: ChannelGroups, seed: int) -> Scores:
    """Root mean square of the filter that makes a channel, over the layer's mean."""
    return filter_scores(groups, partial(_entry_norms, order=2))


@criterion("random")
def random(groups: ChannelGroups, seed: int) -> Scores:
    """Uniform random scores from a seed: the baseline that every criterion must beat."""
    return np.random.default_rng(seed).random(groups.labels.count)


def group_scores(groups: ChannelGroups, chosen: Criterion, seed: int, batches: Batches = ()) -> Scores:
    """The mean of a criterion over each group's members; NaN for a group that has no scored member. Shape (groups,).

    Raises:
        PlanError: a parameter holds no numbers, or none that are finite; or the scores are not one number a label.
    """
    empty = next((key for key, value in groups.graph.params.items() if value.data is not None and value.data.is_meta), None)
    if empty is not None:
        raise PlanError(
            "is on the meta device and holds no numbers",
            where=empty,
            remedy="Call model.to_empty(device='cpu') and load its weights first.",
        )
    scores = np.asarray(chosen.function(groups, seed) if chosen.reads == "parameters" else chosen.function(groups, seed, batches), float)
    if scores.shape != (groups.labels.count,) or np.isinf(scores).any():
        what = f"gives scores of shape {scores.shape}" if scores.shape != (groups.labels.count,) else "gives infinite scores"
        raise PlanError(
            what, where=f"criterion {chosen.name}", remedy=f"Give one finite score, or NaN, for each of {groups.labels.count} labels."
        )
    known = ~np.isnan(scores)
    total = np.bincount(groups.group[known], scores[known], minlength=groups.count)
    number = np.bincount(groups.group[known], minlength=groups.count)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: Scores = total / number
    return mean


def _means(groups: ChannelGroups, found: list[tuple[NDArray[np.int64], Scores]]) -> Scores:
    """For each label the mean over all entries (labels, scores) of its group: several parameters may be named after one channel."""
    if not found:
        return np.full(groups.labels.count, np.nan)
    labels = np.concatenate([labels for labels, _ in found])
    group = groups.group[labels[labels >= 0]]
    total = np.bincount(group, np.concatenate([scores for _, scores in found])[labels >= 0], minlength=groups.count)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: Scores = total / np.bincount(group, minlength=groups.count)
    return mean[groups.group]


Measure = Callable[[torch.Tensor], Scores]
"""A score for each row of a table (entries of an axis, what each holds)."""


def filter_scores(groups: ChannelGroups, measure: Measure, *, relative: bool = True) -> Scores:
    """Filters scored along output axes; along input axes for groups that have no output of their own (a channel selection's copies).

    Args:
        groups: the channel groups.
        measure: scores one weight's filters, given as rows.
        relative: over the mean of each weight, which makes layers comparable.
    """
    made = {layer.key for layer in groups.layers}
    outputs = _axis_scores(groups, measure, lambda key, labels: key in made, relative)
    scored = np.bincount(groups.group[~np.isnan(outputs)], minlength=groups.count) > 0
    lacking = ~scored & ~groups.pinned
    if not lacking.any():
        return outputs
    # The input axis of a grouped convolution is left out: its filters are scored where they are made.

    def reads(key: Key, labels: NDArray[np.int64]) -> bool:
        return key not in made and isinstance(key[1], int) and bool(lacking[groups.group[labels]].any())

    inputs = _axis_scores(groups, measure, reads, relative)
    return np.where(scored[groups.group], outputs, inputs)


def _axis_scores(groups: ChannelGroups, measure: Measure, wanted: Callable[[Key, NDArray[np.int64]], bool], relative: bool) -> Scores:
    found = []
    for key, labels in groups.labels.axes.items():
        name, axis = key
        data = groups.graph.real(name)
        if data is None or data.dim() < 2 or labels.numel() < 2:
            continue
        if wanted(key, labels.numpy()):
            place = axis if isinstance(axis, int) else axis[0]
            norm = measure((data if place == 0 else data.transpose(0, place)).flatten(1))
            norm = norm if norm.size == labels.numel() else np.resize(norm, labels.numel())
            mean = float(norm.mean())
            if not np.isfinite(mean):
                refuse_not_finite(name, data)
            found.append((labels.numpy(), norm / max(mean, 1e-30) if relative else norm))
    return _means(groups, found)


def _entry_norms(flat: torch.Tensor, order: int) -> Scores:
    """Mean |w| (order 1) or root mean square (order 2) of each row; up to a factor that is the same for all."""
    found = _sums_of_sizes(flat) if order == 1 else torch.linalg.vector_norm(flat, 2, dim=1)
    norm: Scores = found.detach().double().cpu().numpy() / flat.shape[1] ** (1 / order)
    return norm


_BLOCK = 1 << 17
"""Entries that are looked at together (half a MiB, which stays in a cache): no copy of a large weight is made."""


def _sums_of_sizes(rows: torch.Tensor) -> torch.Tensor:
    """Sum of |w| of each row. torch's own norm of order 1 adds entry by entry and takes twice as long."""
    step = max(1, _BLOCK // max(rows.shape[1], 1))
    if step >= len(rows):
        return rows.abs().sum(1)
    sizes = rows.new_empty((step, rows.shape[1]))  # written over and over: fresh memory for each part costs more than the sums
    return torch.cat([torch.abs(part, out=sizes[: len(part)]).sum(1) for part in rows.detach().split(step)])


def check_finite(groups: ChannelGroups, name: str) -> None:
    """Weights that are not finite make any ranking meaningless. A sum is finite only if every term is; it is the fastest look.

    What a norm of weights has read to score its channels has been looked at.

    Raises:
        PlanError: the parameter is named.
    """
    seen = {layer.key[0] for layer in groups.layers} if name in ("l1", "l2") else set()
    for key, value in groups.graph.params.items():
        data = value.data
        if data is not None and data.is_floating_point() and data.dim() > 0 and (key not in seen or data.dim() < 2):
            if not np.isfinite(data.sum().item()) and (key in _weights(groups) or bool(data.isnan().any())):
                refuse_not_finite(key, data)


def _weights(groups: ChannelGroups) -> set[str]:
    """Names of the parameters that layers compute with. Other constants may well be infinite: the mask of an attention is."""
    roles = ("weight", "bias", "running_mean", "running_var")
    return {value.name for node in groups.graph.nodes for role in roles if (value := node.get(role)) is not None and value.is_param}


def refuse_not_finite(name: str, data: torch.Tensor) -> None:
    """Raise PlanError if a parameter holds NaN or infinity; a sum that overflows may also come from finite weights."""
    if not bool(torch.isfinite(data).all()):
        raise PlanError("holds NaN or infinity", where=name, remedy="Load a sound checkpoint; a diverged training run cannot be pruned.")
