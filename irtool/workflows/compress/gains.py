"""Whether a stage of a compression was worth it: told by images that were held back from it, which are not those that score.

A net that is planned in two stages, or distilled, may be worse for it, and no figure of the images that it was fitted on would say so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from irtool.analysis.cost import cost
from irtool.ir.graph import Graph
from irtool.pruning.reconstruct.distance import Aims
from irtool.workflows.compress.settings import Settings

T = TypeVar("T")
HELD_BACK = 512
"""Training images that nothing is fitted on, a fifth at most."""
STAGES = 2
"""Tried unless told otherwise: three gained no more (ADR 17)."""
STAGE_WORK, DISTIL_WORK = 2e11, 1.2e12
"""Multiply-accumulates of one run over the images that are scored, and of a whole distillation, above which neither is tried unasked: about a
minute of one core for the latter."""
FEWEST = 1024
"""Images that distilling is tried on unasked: on fewer it gains little."""


@dataclass(frozen=True)
class Kept(Generic[T]):
    """The better of two results, and the sentence about it."""

    result: T
    note: str


def better(held: Aims, name: str, before: T, after: T, graph_of: Callable[[T], Graph]) -> Kept[T]:
    """Return the result that is nearer to the original on the images held back; the simpler one where they are equal, or not finite."""
    old, new = held.distance(graph_of(before)), held.distance(graph_of(after))
    what = f"distance of the outputs on {held.count} images held back {old:.4g} -> {new:.4g}"
    return Kept(after, f"{name} kept: {what}") if new < old else Kept(before, f"{name} given up, it gained nothing: {what}")


def stages_of(graph: Graph, settings: Settings, images: int) -> int:
    """In how many stages a budget is tried to be reached: as many as asked for, else `STAGES` where that takes little.

    Args:
        graph: the original.
        settings: with a plan's options.
        images: that a criterion looks at.
    """
    asked: Any = settings.plan.get("stages")
    if asked is not None:
        return int(asked)
    small = graph.trainable and images > 0 and cost(graph).macs * images <= STAGE_WORK
    planned = settings.plan.get("budget") is not None and settings.bound is None
    return STAGES if small and planned and settings.plan.get("engine") is None else 1


def distilled_on(graph: Graph, settings: Settings, most: int) -> tuple[int, int]:
    """Choose how often images are looked at while distilling, and how many: as asked for; else once, as many as are worth it, or none.

    Args:
        graph: the original.
        settings: of the compression.
        most: images that there are room for.
    """
    if settings.distil is not None:
        return settings.distil, most if settings.distil else 0
    if not graph.trainable or settings.plan.get("budget") is None or settings.bound is not None or not settings.reconstruct:
        return 0, 0
    count = min(most, int(DISTIL_WORK / max(3 * cost(graph).macs, 1)))  # forwards of both, and backwards of a smaller one
    return (1, count) if count >= FEWEST else (0, 0)
