"""The text form of passes: `fold-batchnorm, remove-identity{dropout=true}`.

A pass is its name, with hyphens or underscores, and in braces those options that are not as by default: `name=value`, values as in
TOML (numbers, `true`, `"text"`, lists). Pipelines, recipes and messages use it.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from typing import Any

from irtool.errors import OptionError

_PASS = re.compile(r"\s*([A-Za-z][\w-]*)\s*")
_PLAIN = (bool, int, float, str)


def options_of(made: Any) -> dict[str, Any]:
    """The fields of a dataclass that are plain data: numbers, texts, and lists of them."""
    values = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items() if _is_plain(value)}


def text_of(made: Any) -> str:
    """The text of a pass: its name, and the plain options that are not as by default."""
    defaults = {field.name: field.default for field in dataclasses.fields(made)}
    given = {name: value for name, value in options_of(made).items() if value != (list(d) if isinstance(d := defaults[name], tuple) else d)}
    words = ", ".join(f"{name}={json.dumps(value)}" for name, value in given.items())
    return made.name.replace("_", "-") + (f"{{{words}}}" if words else "")


def parse(text: str, find: Callable[[str], type]) -> Iterator[Any]:
    """Read passes, parted by commas.

    Args:
        text: as `text_of` writes it.
        find: gives the class of a name.

    Raises:
        OptionError: the text cannot be read, or an option does not exist.
    """
    rest = text
    while rest.strip():
        found = _PASS.match(rest)
        if found is None:
            raise OptionError(f"{rest.strip()!r} names no pass", where=text, remedy="Write passes as `name{option=value}, name`.")
        name, rest = found[1], rest[found.end() :]
        options, rest = _braces(rest, text) if rest.startswith("{") else ("", rest)
        yield _made(find(name), name, options)
        rest = rest.lstrip()
        if rest and not rest.startswith(","):
            raise OptionError(f"{rest!r} follows {name} without a comma", where=text, remedy="Part passes by commas.")
        rest = rest[1:]


def _braces(rest: str, text: str) -> tuple[str, str]:
    """Split a text behind the braces that it starts with: what they hold, and what follows them. Braces in texts count as letters."""
    quoted, depth = False, 0
    for place, letter in enumerate(rest):
        if letter == '"' and rest[place - 1] != "\\":
            quoted = not quoted
        depth += (letter == "{") - (letter == "}") if not quoted else 0
        if not depth:
            return rest[1:place], rest[place + 1 :]
    raise OptionError("a brace is not closed", where=text, remedy="End the options of a pass with `}`.")


def _made(kind: type, name: str, options: str) -> Any:
    try:
        values = tomllib.loads(f"options = {{{options}}}")["options"]
    except tomllib.TOMLDecodeError as error:
        raise OptionError(
            f"options that cannot be read: {{{options}}}",
            where=name,
            remedy='Write `option=value`, values as in TOML: 3, 0.5, true, "text".',
        ) from error
    known = {field.name: field for field in dataclasses.fields(kind)}
    for option, value in values.items():
        if option not in known:
            raise OptionError(f"no option is called {option!r}", where=name, remedy=f"Options are {', '.join(known) or 'none'}.")
        default = known[option].default
        if isinstance(default, bool) != isinstance(value, bool) and default is not dataclasses.MISSING:
            raise OptionError(f"{option}={json.dumps(value)}: another kind of value", where=name, remedy=f"The default is {default!r}.")
    try:
        return kind(**{option: tuple(value) if isinstance(value, list) else value for option, value in values.items()})
    except TypeError as error:
        raise OptionError(f"cannot be written as text alone: {error}", where=name, remedy="Make it in Python.") from error


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple | list) and all(isinstance(item, _PLAIN) for item in value))
