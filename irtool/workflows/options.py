"""Options by name, as keyword arguments and flags give them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from irtool.errors import OptionError

T = TypeVar("T")


def read_options(kind: type[T], given: Mapping[str, Any]) -> T:
    """Make a dataclass of options; those that are None are left at their defaults.

    Raises:
        OptionError: there is no option of that name.
    """
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            remedy = f"Did you mean {near[0]}?" if near else f"Choose among {', '.join(names)}."
            raise OptionError("is no option", where=name, remedy=remedy)
    return kind(**{name: value for name, value in given.items() if value is not None})
