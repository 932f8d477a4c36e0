"""Progress of a long piece of work, for whoever watches it.

The loops know nothing about terminals. They call a `Progress` with a `Status`; the command line draws it, a notebook may
plot it, and `silent` drops it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Status:
    """One report. `done == total` is the last one of its task."""

    task: str
    """The work in hand, for people: "train epoch 2/10", "evaluate", "decode train"."""
    done: int
    """Images done so far."""
    total: int
    loss: float | None = None
    """Mean loss over the images done."""
    accuracy: float | None = None
    """Accuracy over the images done, in [0, 1]."""
    rate: float = 0.0
    """Images per second since the task began."""
    seconds_left: float | None = None
    """Time left of the whole job, evaluation included, as far as it can be told."""


class Progress(Protocol):
    """Anything that can be called with a `Status`. It must return quickly: it runs inside the loop."""

    def __call__(self, status: Status, /) -> None: ...


def silent(status: Status, /) -> None:
    """The progress that nobody watches."""


class Reporter:
    """The progress of a whole workflow: stages of unknown length beside the counted work. This one drops all that it is told."""

    def __call__(self, status: Status, /) -> None:
        """Take note of a `Status`."""

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Hold for as long as `name` is being done."""
        yield

    def show(self, *results: Any) -> None:
        """Take note of a result while the work goes on: plain text, or what the reporter can draw."""


class Throttle:
    """Says when the next report is due, so that drawing never costs a loop more than a few calls a second."""

    def __init__(self, seconds: float = 0.1) -> None:
        self._seconds, self._next = seconds, 0.0

    def due(self, last: bool = False) -> bool:
        """True at most once in `seconds`, and always for the last report of a task."""
        now = time.perf_counter()
        if not last and now < self._next:
            return False
        self._next = now + self._seconds
        return True
