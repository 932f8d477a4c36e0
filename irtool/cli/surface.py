"""The command line's surface as data: `surface.json` says what each command takes, so that help, completion and mistakes need no torch.

The functions in `irtool.cli.<command>` are the source. `python -m irtool.cli.surface` (or `make surface`) writes the file anew from
them, and a test compares the two.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import json
import types
import typing
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from typer.models import ArgumentInfo, OptionInfo

COMMANDS = ("inspect", "view", "train", "compress", "quantize", "report", "diff", "export", "simplify", "verify", "demo")
"""Each command, in the order of the work. `irtool.cli.<name>` has the function of that name."""

FILE = Path(__file__).with_name("surface.json")
_PLAIN = (str, int, float, bool, Path)


@cache
def surface() -> dict[str, dict[str, Any]]:
    """Return each command's help and parameters, as the file says them."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def summary(name: str) -> str:
    """Return the first paragraph of a command's help, on one line."""
    return " ".join(surface()[name]["help"].split("\n\n")[0].split())


def function(name: str) -> Callable[..., None]:
    """Import the function behind a command, and with it all that the command needs."""
    return getattr(importlib.import_module(f"irtool.cli.{name}"), name)


def described(name: str) -> dict[str, Any]:
    """Describe one command by its function: its help, and each parameter in order."""
    found = function(name)
    parameters = inspect.signature(found, eval_str=True).parameters.values()
    return {"help": inspect.getdoc(found), "parameters": [_parameter(parameter) for parameter in parameters]}


def _parameter(parameter: inspect.Parameter) -> dict[str, Any]:
    hint, info = typing.get_args(parameter.annotation)
    assert isinstance(info, OptionInfo | ArgumentInfo), parameter
    kind, many, choices = _kind(hint)
    default = None if parameter.default is inspect.Parameter.empty else parameter.default
    told = {
        "name": parameter.name,
        "argument": isinstance(info, ArgumentInfo),
        "flags": _flags(info),
        "type": kind,
        "many": many,
        "choices": choices,
        "required": parameter.default is inspect.Parameter.empty,
        "default": getattr(default, "value", default),
        "help": info.help,
        "panel": info.rich_help_panel,
        "metavar": info.metavar,
        "min": info.min,
        "max": info.max,
    }
    return {key: value for key, value in told.items() if _says_something(key, value)}


def _says_something(key: str, value: Any) -> bool:
    return value is not None and (key == "default" or value is not False) and value not in ([], "")


def _flags(info: OptionInfo | ArgumentInfo) -> list[str]:
    """Return the spellings of an option. In an annotation the first one stands where a default would."""
    first = [info.default] if isinstance(info.default, str) else []
    return [*first, *(getattr(info, "param_decls", None) or ())]


def _kind(hint: Any) -> tuple[str, bool, list[str]]:
    """Read an annotation: the name of the type of one value, whether it may be repeated, and the words to choose from."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        (hint,) = (part for part in parts if part is not types.NoneType)
        return _kind(hint)
    if origin is list:
        kind, _, choices = _kind(parts[0])
        return kind, True, choices
    if origin is typing.Literal:
        return "str", False, list(parts)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "str", False, [member.value for member in hint]
    assert hint in _PLAIN, hint
    return hint.__name__, False, []


def written() -> str:
    """Return the text that the file should have."""
    return json.dumps({name: described(name) for name in COMMANDS}, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(written(), encoding="utf-8")
