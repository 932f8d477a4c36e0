"""The output of `irtool compress --recipe`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from irtool.cli.screen import answer, complain, screen
from irtool.cli.screen import out as console
from irtool.errors import OptionError
from irtool.workflows.folders.steps import SUMMARY
from irtool.workflows.recipe.parse import RecipeError
from irtool.workflows.recipe.run import run_recipe


def show_recipe(path: Path, out: Path, data: str | None = None) -> None:
    """Run a recipe, and show each step's result.

    Raises:
        OptionError: the recipe has mistakes; each was told on a line of its own, and nothing was run.
        IrtoolError: a step failed. The steps before it are kept.
    """
    try:
        with screen() as progress:
            done = run_recipe(path, out, data, progress)
    except RecipeError as error:
        for mistake in error.mistakes:
            complain(f"{path}, line {mistake.line}: {mistake.text}")
        count = len(error.mistakes)
        raise OptionError(
            f"{count} mistake{'s' if count > 1 else ''}; nothing was run", where=str(path), remedy="Correct the lines above."
        ) from error
    answer({"folder": str(out), "steps": done.steps, "kept": done.kept})
    for name in done.kept:
        console().print(f"{name}: done before", markup=False)
    console().print(_table(done.steps))
    for state in done.steps:
        for note in state["notes"]:
            console().print(f"{state['name']}: {note}", markup=False)
    console().print(f"\nwritten to {out}: a folder for each step, {SUMMARY}")


def _table(states: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("step", "accuracy", "parameters", "MACs", "seconds", title="each step's result")
    for column in table.columns[1:]:
        column.justify = "right"
    for state in states:
        table.add_row(
            state["name"], f"{100 * state['accuracy']:.2f} %", f"{state['params']:,}", f"{state['macs']:,}", f"{state['seconds']:.1f}"
        )
    return table
