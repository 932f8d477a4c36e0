"""What the user sees while a command works: results on stdout, progress and complaints on stderr."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn

from irtool.progress import Reporter, Status


def out() -> Console:
    """Results. Made anew each time: the stream may have been replaced since."""
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True, emoji=False)  # net.py:Net: is no emoji
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
            return
        if status.task not in self._tasks:
            self._tasks[status.task] = self._bars.add_task(status.task, total=status.total, note="")
        note = f"accuracy {100 * status.accuracy:.1f} %" if status.accuracy is not None else ""
        note += f"  loss {status.loss:.3f}" if status.loss is not None else ""
        self._bars.update(self._tasks[status.task], completed=status.done, total=status.total, note=note)
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
            if logged:
                print(f"{name} ...", file=sys.stderr, flush=True)
            yield
            return
        task = self._bars.add_task(name, total=None, note="")
        try:
            yield
        finally:
            self._bars.remove_task(task)


@contextlib.contextmanager
def screen() -> Iterator[Screen]:
    """Progress for the length of the block."""
    if not sys.stderr.isatty():
        yield Screen(None)
        return
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
