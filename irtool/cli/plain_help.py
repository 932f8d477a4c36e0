"""Help in plain text: the options under the headings that they belong to. Drawn frames would take twice the time of everything else."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import typer.core

WIDTH = 120
"""Columns that a line of help has at most, on a terminal that is wider."""


class Command(typer.core.TyperCommand):
    """A command whose help lists its arguments, then each heading's options."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the parameters, those of one heading together, in the order of their first."""
        headings: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for parameter in self.get_params(ctx):
            told = parameter.get_help_record(ctx)
            if told is not None:
                if parameter.param_type_name == "argument":  # its Python type says nothing to a user
                    told = (told[0].partition(" <")[0], told[1])
                headings[getattr(parameter, "rich_help_panel", None) or _HEADINGS[parameter.param_type_name]].append(told)
        first = [name for name in _HEADINGS.values() if name in headings]
        for heading in dict.fromkeys([*first, *headings]):
            with formatter.section(heading):
                formatter.write_dl(headings[heading])


_HEADINGS = {"argument": "Arguments", "option": "Options"}
"""For what stands under no heading of its own; these come first."""
