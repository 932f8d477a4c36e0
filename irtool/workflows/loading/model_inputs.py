"""From what a user writes for sizes and values of inputs to numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod

from irtool.errors import OptionError
from irtool.workflows.loading.models import LARGEST_INPUT


def input_values(texts: Sequence[str] | None) -> dict[str, float | bool | list[float]]:
    """Read `sr=16000`, `flag=true`, `size=640,640`.

    Raises:
        OptionError: it is not of that form.
    """
    found: dict[str, float | bool | list[float]] = {}
    for text in texts or ():
        name, _, written = text.rpartition("=")
        try:
            numbers = [_number(word.strip().lower()) for word in written.split(",")]
        except ValueError as error:
            raise OptionError(f"{text!r} gives no number", where="--set", remedy="Write it like sr=16000, or size=640,640.") from error
        if not name or name in found:
            raise OptionError(
                f"{text!r} names no input, or one again", where="--set", remedy="Write it like sr=16000, once for each input."
            )
        found[name] = numbers[0] if len(numbers) == 1 else numbers
    return found


def _number(word: str) -> float | bool:
    if word in ("true", "false"):
        return word == "true"
    return int(word) if re.fullmatch(r"[+-]?\d+", word) else float(word)


def input_shapes(texts: Sequence[str] | None) -> list[tuple[int, ...]]:
    """Read `1x3x32x32`.

    Raises:
        OptionError: it is not of that form.
    """
    found = []
    for text in texts or ():
        if not re.fullmatch(r"[1-9]\d{0,9}([x,][1-9]\d{0,9})*", text):
            raise OptionError(f"{text!r} is no size", where="--input", remedy="Write it like 1x3x224x224, batch first.")
        sizes = tuple(int(size) for size in re.split("[x,]", text))
        if prod(sizes) > LARGEST_INPUT:
            raise OptionError(
                f"{text} is more than {LARGEST_INPUT:,} numbers, which fits no memory", where="--input", remedy="Give the size of an image."
            )
        found.append(sizes)
    return found
