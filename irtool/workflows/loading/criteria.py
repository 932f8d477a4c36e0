"""Criteria of the user's own: functions, or `file.py:name` on the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from irtool.errors import OptionError
from irtool.pruning.criteria.criteria import CRITERIA, Criterion, criterion
from irtool.workflows.loading.spec import imported


def criterion_name(chosen: str | Callable[..., Any] | Criterion | None) -> str | None:
    """The name of a criterion, under which it is registered now if it was not.

    Args:
        chosen: a name; a function of (groups, seed) that scores every label; `file.py:name` for such a function in a file, which is run.

    Raises:
        OptionError: the file has no such function, or another criterion has its name.
    """
    if chosen is None or (isinstance(chosen, str) and ":" not in chosen):
        return chosen
    if isinstance(chosen, Criterion):
        if CRITERIA.setdefault(chosen.name, chosen) is not chosen:
            raise OptionError(f"a criterion is called {chosen.name!r} already", where="criterion", remedy="Give this one another name.")
        return chosen.name
    function = imported(*chosen.rsplit(":", 1)) if isinstance(chosen, str) else chosen
    known = next((name for name, row in CRITERIA.items() if row.function is function), None)
    if known is None:
        known = str(getattr(function, "__name__", type(function).__name__))
        criterion(known)(function)
    return known
