"""A clock that tests move: what ends by time ends after as many looks at it on every machine."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import pytest


class Clock:
    """In the place of the module `time`.

    Args:
        step: seconds that pass whenever somebody looks.
    """

    def __init__(self, step: float = 0.0) -> None:
        self.now, self.step = 0.0, step

    def perf_counter(self) -> float:
        self.now += self.step
        return self.now

    monotonic = perf_counter

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def clocked(monkeypatch: pytest.MonkeyPatch, modules: Sequence[str], step: float = 0.0) -> Clock:
    """Give modules such a clock."""
    clock = Clock(step)
    for module in modules:
        monkeypatch.setattr(importlib.import_module(module), "time", clock)  # a function may have the name of its module
    return clock
