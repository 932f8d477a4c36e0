"""Latency as a budget: plan by a table of layer times, measure the whole net, correct the aim, until the measured time is what was asked for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from irtool.engines.speed.layer_times import layer_terms
from irtool.engines.speed.stopwatch import Stopwatch
from irtool.engines.speed.whole_graph import GraphClock
from irtool.errors import PlanError
from irtool.ir.graph import Graph
from irtool.progress import Progress, Status
from irtool.pruning.allocation.budget import LATENCY
from irtool.pruning.allocation.budgeted import Budgeted, SlowError
from irtool.pruning.slicing.plan_slicing import Planned

TOLERANCE = 0.05
"""Measured, a net may take this part more than was asked for."""
_CLOSE, _OVER = 0.04, 0.01
"""Distances below and above the latency asked for that are near enough. Measured anew by other sessions, a net's share of the original's time differs
by up to three hundredths: a plan that was just within the tolerance when it was chosen would often be beyond it."""
_CENTRE = 1 + (_OVER - _CLOSE) / 2
_ATTEMPTS = 7


@dataclass(frozen=True)
class Way:
    """One way to plan.

    Attributes:
        budgeted: allocates; its `terms` and `aim` are set here.
        solve: makes and proves a plan for them.
        loss: the loss that the scores expect of what would go.
        whole: names of the convolutions that lose whole groups.
    """

    budgeted: Budgeted
    solve: Callable[[], Planned[Graph]]
    loss: Callable[[], float]
    whole: Collection[str] = ()


@dataclass(frozen=True)
class Attempt:
    """One plan, measured.

    Attributes:
        planned: the plan, and its slicing.
        table: the share of the table's time that the plan leaves.
        measured: the median of its times over the original's, measured pair by pair.
    """

    planned: Planned[Graph]
    table: float
    measured: float


def plan_within(graph: Graph, ways: Sequence[Way], prepared: Graph, engine: str, threads: int, progress: Progress) -> Planned[Graph]:
    """Plan so that the measured time keeps to the budget.

    Args:
        graph: the graph as the user has it, which times are shares of.
        ways: how it may be planned; the one that loses least at the time asked for, by the table, is gone on with.
        prepared: the graph that is planned on.
        engine, threads: what is timed.
        progress: told about the layers that are timed and the attempts.

    Raises:
        PlanError: nothing that can be reached is as fast; it says how fast the fastest is.
        OptionError: an engine that cannot be timed.
        ExportError: the engine lacks an operator of the graph.
    """
    watch = Stopwatch(engine, threads, progress=progress)
    with GraphClock(graph, engine, threads) as clock:
        share = _share(ways[0].budgeted.options.budget[LATENCY], clock)
        for way in ways:
            terms = layer_terms(prepared, watch, way.whole)
            way.budgeted.terms = tuple((1e3 * milliseconds, product) for milliseconds, product in terms)
        way = ways[0] if len(ways) == 1 else min(ways, key=lambda way: _loss(way, share))

        def attempt(aim: float) -> Attempt:
            way.budgeted.aim = aim
            planned = way.solve()
            return Attempt(planned, way.budgeted.reached, clock.compared(planned.slicing.fill()).ratios[1])

        def again(made: Attempt) -> float:
            with GraphClock(graph, engine, threads) as other:
                return other.compared(made.planned.slicing.fill()).ratios[1]

        found = search(share, attempt, again, lambda done: progress(Status(f"plan and measure in {engine}", done, _ATTEMPTS)), engine)
    return found.planned.saying(notes=(*found.planned.plan.notes, _note(found, engine, threads)))


def _loss(way: Way, share: float) -> float:
    """The loss that a way expects at a share of the table's time; infinite where it does not get there."""
    way.budgeted.aim = share
    try:
        return way.loss()
    except SlowError:
        return math.inf


def _share(wish: float, clock: GraphClock) -> float:
    """A latency budget as a share of the original's time."""
    if wish <= 1:
        return wish
    alone = clock.alone()
    if wish > alone:
        what = f"the original takes {alone:.3g} ms in {clock.engine}, less than {wish:g} ms"
        raise PlanError(what, where=LATENCY, remedy="Give less, or a share of at most 1.")
    return wish / alone


def search(
    share: float,
    attempt: Callable[[float], Attempt],
    again: Callable[[Attempt], float],
    progress: Callable[[int], None],
    engine: str,
) -> Attempt:
    """Find the plan whose measured time is nearest to a share of the original's, and no more than `TOLERANCE` above it.

    What is near enough is measured twice, and counts by the mean: of several attempts the one that chance made look best would be taken.

    Args:
        share: what may be left of the original's time.
        attempt: makes and measures a plan for a share of the table's time. Raises SlowError where that cannot be reached.
        again: measures a plan anew, in sessions of its own.
        progress: told how many attempts were made.
        engine: its name, for the error.

    Raises:
        PlanError: nothing that can be reached is as fast.
    """
    seen: list[Attempt] = []
    aim, floor = share, 0.0
    for number in range(_ATTEMPTS):
        progress(number)
        try:
            made = attempt(aim)
        except SlowError as error:
            floor = aim = error.least * (1 + 1e-9)
            made = attempt(aim)
        if _near(made, share):
            made = dataclasses.replace(made, measured=(made.measured + again(made)) / 2)
        seen.append(made)
        if _near(made, share):
            break
        following = max(_next_aim(share * _CENTRE, seen), floor)
        if abs(following - aim) < 1e-3 * aim:
            break
        aim = following
    progress(_ATTEMPTS)
    fitting = [one for one in seen if one.measured <= share * (1 + TOLERANCE)]
    if fitting:
        return min(fitting, key=lambda one: abs(one.measured - share * _CENTRE))
    least = min(one.measured for one in seen)
    raise PlanError(
        f"latency cannot come down to {100 * share:.3g} % in {engine}: the least reachable is {100 * least:.1f} % of the original, measured",
        where="budget",
        remedy="Ask for at least that, or loosen ignore, limits, min_channels or round_to: the rest is work that hangs on no channel.",
    )


def _near(made: Attempt, share: float) -> bool:
    """Whether a measured time is near enough to what was asked for."""
    return -_CLOSE <= made.measured / share - 1 <= _OVER


def _next_aim(share: float, seen: list[Attempt]) -> float:
    """Choose the latency to ask of the table, by the line through the nearest attempts on both sides (the original is one of them)."""
    points = sorted([(one.measured, one.table) for one in seen] + [(1.0, 1.0)])
    below = [point for point in points if point[0] <= share]
    above = [point for point in points if point[0] > share] or [(1.0, 1.0)]
    (y0, x0), (y1, x1) = (below[-1], above[0]) if below else (above[0], above[min(1, len(above) - 1)])
    slope = (x1 - x0) / (y1 - y0) if y1 != y0 else 1.0
    least = min(one.table for one in seen)
    return float(np.clip(x0 + (share - y0) * slope, 0.4 * least, 1.0))


def _note(found: Attempt, engine: str, threads: int) -> str:
    counted = f"{threads} thread{'s' * (threads > 1)}"
    return f"latency: {100 * found.measured:.1f} % of the original's in {engine}, measured on this machine with {counted}"
