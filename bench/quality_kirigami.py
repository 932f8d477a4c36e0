"""torch-kirigami's scores as a tool of `bench/quality.py`: each channel scored once, and the lowest removed at once, as many as a budget asks for.

Its own greedy search knows a ratio of channels, not multiply-accumulates, and checks each channel that it takes: a minute for 5 % of a small net's.
"""

from __future__ import annotations

import copy
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from quality_tools import EXAMPLE, Calibration, Tool, bisected, gradients, macs, without_selections
from torch import nn

SECONDS = 600.0
"""CPU seconds of listing and scoring a net's channels after which the tool is given up."""


@dataclass(frozen=True)
class _Scored:
    """A net whose channels have scores: its pruner, and the channels that may go, from the lowest score on."""

    model: nn.Module
    pruner: Any
    removable: list[Any]


_SCORED: dict[tuple[str, float, int], _Scored] = {}
"""By metric, net (the sum of its parameters) and seed: a net's first budget pays for all."""


def kirigami(metric: str) -> Tool:
    """torch-kirigami with one of its scores, `l2` (of groups) or `taylor`."""

    def run(model: nn.Module, share: float, given: Calibration) -> nn.Module:
        from torch_kirigami.pruning import Pruner

        original, model = macs(model), without_selections(model).eval()
        key = (metric, float(sum(parameter.double().sum() for parameter in model.parameters())), given.seed)
        if key not in _SCORED:
            with _at_most(SECONDS):
                _SCORED[key] = _scored(model, metric, given)
        known = _SCORED[key]

        def at(ratio: float) -> nn.Module:
            gone = known.removable[: round(ratio * len(known.removable))]
            plan = known.pruner.plan_remove([part for candidate in gone for part in candidate.remove])
            done: nn.Module = Pruner(copy.deepcopy(known.model)).apply(plan)[0]
            return done

        return bisected(at, share * original)

    return run


def _scored(model: nn.Module, metric: str, given: Calibration) -> _Scored:
    from torch_kirigami import DependencyGraph
    from torch_kirigami.pruning import ChannelRatio, GroupMagnitude, PlanningContext, Pruner, WeightTaylor

    slopes = gradients(model, given, squared=False) if metric == "taylor" else {}
    for name, parameter in model.named_parameters():
        parameter.grad = slopes[name].clone() if name in slopes else None
    graph = DependencyGraph.build(model, args=(torch.zeros(EXAMPLE),))
    pruner = Pruner(model, graph=graph)
    space = pruner.filter_candidates(pruner.discover_candidates())
    context = PlanningContext(graph, space.candidates, ChannelRatio(0.5, "global"), space.channel_axes, pruner.constraints)
    scores = context.score(WeightTaylor() if metric == "taylor" else GroupMagnitude(p=2), space.candidates)
    for parameter in model.parameters():
        parameter.grad = None
    ranked = sorted(zip(scores, space.candidates, strict=True), key=lambda pair: (pair[0], pair[1].key))
    return _Scored(model, pruner, _but_the_last([candidate for _, candidate in ranked]))


def _but_the_last(order: list[Any]) -> list[Any]:
    """All but each layer's best channel, without which there is no net."""
    layers = [candidate.key.rsplit(":", 1)[0] for candidate in order]
    left, found = Counter(layers), []
    for candidate, layer in zip(order, layers, strict=True):
        left[layer] -= 1
        if left[layer]:
            found.append(candidate)
    return found


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise TimeoutError when the block has taken so many CPU seconds."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"channels not scored after {seconds:g} s of CPU")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


KIRIGAMI: dict[str, Tool] = {f"kirigami {metric}, at once": kirigami(metric) for metric in ("l2", "taylor")}
