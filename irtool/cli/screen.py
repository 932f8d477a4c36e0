"""The terminal while a command works: results on stdout, progress and complaints on stderr."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from irtool.progress import Reporter, Status

if TYPE_CHECKING:  # rich is loaded when something is shown: completion and --version need none of it
    from rich.console import Console
    from rich.progress import Progress, TaskID


@dataclass(frozen=True)
class Mode:
    """The amount that a command prints.

    Attributes:
        json: the result as JSON, and no text on stdout.
        quiet: errors alone.
        verbose: what irtool logs, on stderr.
    """

    json: bool = False
    quiet: bool = False
    verbose: bool = False

    @property
    def wordless(self) -> bool:
        """Whether there is no text on stdout."""
        return self.json or self.quiet


_PLAIN = Mode()
_MODE: ContextVar[Mode] = ContextVar("mode", default=_PLAIN)


def mode() -> Mode:
    """The mode of the command that runs."""
    return _MODE.get()


@contextlib.contextmanager
def shown_as(mode: Mode) -> Iterator[None]:
    """Show what commands print in the block in this mode."""
    before = _MODE.set(mode)
    logger, handler = logging.getLogger("irtool"), logging.StreamHandler(sys.stderr)
    level = logger.level
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
    if mode.verbose:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        _MODE.reset(before)
        logger.removeHandler(handler)
        logger.setLevel(level)


def answer(result: Mapping[str, Any]) -> None:
    """Print a command's result as JSON where that was asked for. What is no number is null there: JSON has no NaN."""
    if mode().json:
        sys.stdout.write(json.dumps(_plain(result), indent=1, default=str) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def out() -> Console:
    """Results. Made anew each time: the stream may have been replaced since."""
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False, soft_wrap=True, emoji=False, quiet=mode().wordless)  # net.py:Net: is no emoji
    if not console.is_terminal:
        console.width = 160  # a pipe has no width: do not squeeze tables to 80 columns
    return console


def complain(text: str) -> None:
    """One line on stderr."""
    print(" ".join(text.split()), file=sys.stderr)


class Screen(Reporter):
    """A bar for each long piece of work, on a terminal; elsewhere a line for each stage.

    Calling it with a `Status` draws that; `stage` shows work of unknown length.
    """

    def __init__(self, bars: Progress | None) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, status: Status, /) -> None:
        if self._bars is None:
            if status.done >= status.total and status.task.startswith("train") and not mode().quiet:
                print(f"{status.task}: {_note(status)}", file=sys.stderr, flush=True)
            return
        if status.task not in self._tasks:
            self._tasks[status.task] = self._bars.add_task(status.task, total=status.total, note="")
        self._bars.update(self._tasks[status.task], completed=status.done, total=status.total, note=_note(status))
        if status.done >= status.total:
            self._bars.remove_task(self._tasks.pop(status.task))

    def show(self, *results: Any) -> None:
        """Print results while the work goes on; plain text is taken as it is."""
        if self._bars is not None:
            self._bars.stop()  # both write to the same terminal
        for result in results:
            out().print(result, markup=not isinstance(result, str))
        if self._bars is not None:
            self._bars.start()

    @contextlib.contextmanager
    def stage(self, name: str, *, logged: bool = True) -> Iterator[None]:
        """Show that this is being done; what is not `logged` is shown on a terminal alone, since it is short as a rule."""
        if self._bars is None:
            if logged and not mode().quiet:
                print(f"{name} ...", file=sys.stderr, flush=True)
            yield
            return
        task = self._bars.add_task(name, total=None, note="")
        try:
            yield
        finally:
            self._bars.remove_task(task)


def _note(status: Status) -> str:
    found = [f"accuracy {100 * status.accuracy:.1f} %" if status.accuracy is not None else ""]
    found.append(f"loss {status.loss:.3f}" if status.loss is not None else "")
    return "  ".join(part for part in found if part)


@contextlib.contextmanager
def screen() -> Iterator[Screen]:
    """Progress for the length of the block."""
    if not sys.stderr.isatty() or mode().quiet or mode().verbose:
        yield Screen(None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    # A descriptor of its own: exporters' chatter is silenced by redirecting 2, and the bars must not go with it.
    with os.fdopen(os.dup(sys.stderr.fileno()), "w") as stream:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=Console(file=stream, force_terminal=True), transient=True) as bars:
            yield Screen(bars)
