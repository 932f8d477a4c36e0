"""Budgets and limits as words: `macs=50%`, `params=1.5M`, `layer3.*=70%`."""

from __future__ import annotations

import re
from collections.abc import Iterable

from irtool.errors import OptionError
from irtool.pruning.allocation.budget import LATENCY, check_budget
from irtool.pruning.allocation.budgeted import check_limits
from irtool.pruning.plan import Rounding

_SCALES = {"": 1.0, "ms": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*(%|k|M|G|ms)?")


def budget_of(words: Iterable[str]) -> dict[str, float] | None:
    """The budget that flags ask for; None where there are none.

    Raises:
        OptionError: one cannot be read.
        PlanError: its kind or number is impossible.
    """
    found = _table("--budget", words, "Write macs=50%, params=1M, bytes=500k or latency=50%.")
    return check_budget(found) if found else None


def limits_of(words: Iterable[str]) -> dict[str, float] | None:
    """The limits that flags ask for; None where there are none.

    Raises:
        OptionError: one cannot be read.
        PlanError: it is no fraction.
    """
    found = _table("--layer-limit", words, "Write NAME=70%, as in 'layer3.*=70%'.")
    return check_limits(found) if found else None


def step_of(word: str) -> Rounding:
    """The multiple of channels that a flag asks for.

    Raises:
        OptionError: it is neither a whole number nor `auto`.
    """
    if word != "auto" and not word.strip().lstrip("-").isdecimal():
        raise OptionError(f"{word!r} cannot be read", where="--round-to", remedy="Write auto, or a whole number, as in --round-to 8.")
    return "auto" if word == "auto" else int(word)


def _table(flag: str, words: Iterable[str], remedy: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for word in words:
        name, equals, number = word.rpartition("=")
        match = _NUMBER.fullmatch(number.strip())
        if not equals or not name.strip() or match is None:
            raise OptionError(f"{word!r} cannot be read", where=flag, remedy=remedy)
        if match[2] == "ms" and (name.strip() != LATENCY or float(match[1]) <= 1):
            raise OptionError(f"{word!r} cannot be read", where=flag, remedy="Give latency=5ms, above 1 ms, or a share, as in latency=50%.")
        if match[2] == "%" and float(match[1]) > 100:
            raise OptionError(f"{word!r} is more than all of it", where=flag, remedy="Give at most 100%.")
        if name.strip() in found:
            raise OptionError(f"{name.strip()} is given twice", where=flag, remedy="Give it once.")
        found[name.strip()] = float(match[1]) / 100 if match[2] == "%" else float(match[1]) * _SCALES[match[2] or ""]
    return found
