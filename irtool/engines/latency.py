"""Latency of a session, on a machine that does other things too."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from irtool.engines.session import Session
from irtool.errors import OptionError

NOISE = 0.05
"""Ratios of latencies that are this near to 1 say nothing; neither do ratios that are not known to this."""


@dataclass(frozen=True)
class Latency:
    """Wall time of one run, in milliseconds.

    Attributes:
        median_ms, p10_ms, p90_ms: the median, and the 10th and 90th percentile.
        runs: how many runs were timed; fewer than asked for if the time was up.
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int


@dataclass(frozen=True)
class PairedLatency:
    """Several sessions timed in turn.

    Attributes:
        latencies: one per session, in the order given.
        ratios: the median over the rounds of a session's time divided by the first session's time in the same round.
            Below 1 is faster than the first; the first is 1 by definition. Load on the machine hits all sessions of a round
            alike, so a ratio is steadier than the quotient of two medians.
        intervals: the 95 % interval of each ratio, by the ranks of the rounds; 0 to infinity of fewer than 6 rounds.
    """

    latencies: tuple[Latency, ...]
    ratios: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]

    @property
    def milliseconds(self) -> tuple[float, ...]:
        """Times to show beside the ratios: the first session's median, and that times the ratio for each session.

        The medians of two sessions come from different rounds, so their quotient is not the median quotient, and a reader who divides
        what is shown would find a third number.
        """
        return tuple(self.latencies[0].median_ms * ratio for ratio in self.ratios)


def is_known(ratio: float, interval: tuple[float, float]) -> bool:
    """Whether a ratio of latencies is known to `NOISE`. What is not is called not measurable now, and nothing slower or faster for it."""
    low, high = interval
    return high - low <= 2 * NOISE * ratio


def latency(session: Session, inputs: Sequence[np.ndarray], *, runs: int = 50, warmup: int = 5, seconds: float | None = None) -> Latency:
    """Time a session on the same inputs, one run after the other.

    Args:
        session: any engine's.
        inputs: the arrays of one run.
        runs: timed runs.
        warmup: untimed runs before (engines plan memory in the first ones).
        seconds: stop timing after this many seconds, with at least one run.

    Raises:
        OptionError: `runs` below 1, `warmup` below 0, or `seconds` not positive.
        BackendError: the inputs do not fit.
    """
    return latency_pairs([session], inputs, runs=runs, warmup=warmup, seconds=seconds).latencies[0]


def latency_pairs(
    sessions: Sequence[Session], inputs: Sequence[np.ndarray], *, runs: int = 50, warmup: int = 5, seconds: float | None = None,
    clock: Callable[[], float] | None = None,
) -> PairedLatency:  # fmt: skip
    """Time sessions against each other: each round runs every session once, starting with another one each time.

    Args:
        sessions: two or more engines or models that take the same arrays.
        inputs: the arrays of one run.
        runs: rounds, that is timed runs of each session.
        warmup: untimed rounds before.
        seconds: stop after this many seconds, with at least one round.
        clock: seconds. With sessions of one thread each, `time.process_time` leaves out what other processes take.

    Raises:
        OptionError: no session, `runs` below 1, `warmup` below 0, or `seconds` not positive.
        BackendError: the inputs do not fit a session.
    """
    _check_options(sessions, runs, warmup, seconds)
    for _ in range(warmup):
        for session in sessions:
            session.run(*inputs)
    now = clock or time.perf_counter
    times: list[list[float]] = []
    end = None if seconds is None else time.perf_counter() + seconds
    while len(times) < runs and (end is None or not times or time.perf_counter() < end):
        row = [0.0] * len(sessions)
        for step in range(len(sessions)):
            which = (len(times) + step) % len(sessions)  # nobody always runs after the same neighbour's cache
            start = now()
            sessions[which].run(*inputs)
            row[which] = (now() - start) * 1e3
        times.append(row)
    table = np.array(times)  # rounds x sessions
    quotients = table / table[:, :1]
    ratios: list[float] = np.median(quotients, axis=0).tolist()
    intervals = ((1.0, 1.0), *map(median_interval, quotients.T[1:]))
    return PairedLatency(tuple(_summary(column) for column in table.T), tuple(ratios), intervals)


def median_interval(quotients: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a median: from rank to rank around the middle, where the count of values below it is binomially distributed.

    Args:
        quotients: one value a round. Fewer than 6 give 0 to infinity.
    """
    count = len(quotients)
    if count < 6:  # the extremes of five hold the median in 94 % of the cases
        return 0.0, float("inf")
    reach, ordered = 0.98 * count**0.5, np.sort(quotients)
    low, high = int(np.floor((count - 1) / 2 - reach)), int(np.ceil((count - 1) / 2 + reach))
    return float(ordered[max(low, 0)]), float(ordered[min(high, count - 1)])


def _summary(times: np.ndarray) -> Latency:
    p10, median, p90 = np.percentile(times, [10, 50, 90])
    return Latency(float(median), float(p10), float(p90), len(times))


def _check_options(sessions: Sequence[Session], runs: int, warmup: int, seconds: float | None) -> None:
    wrong = (
        (not sessions, "no session to time", "Pass at least one session."),
        (runs < 1, f"runs={runs}", "Time at least one run."),
        (warmup < 0, f"warmup={warmup}", "Warm up 0 times or more."),
        (seconds is not None and not seconds > 0, f"seconds={seconds}", "Give a positive number of seconds, or leave it out."),
    )
    for failed, what, remedy in wrong:
        if failed:
            raise OptionError(what, where="latency", remedy=remedy)
