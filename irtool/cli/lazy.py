"""Commands built from their surface: help, completion and a typing mistake are answered without torch, which a command loads when it runs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import typer.core
import typer.main

from irtool.cli.interrupts import leaving_at_once
from irtool.cli.plain_help import WIDTH, Command
from irtool.cli.screen import Mode, shown_as
from irtool.cli.surface import COMMANDS, function, summary, surface

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": WIDTH}

_OUTPUT = (
    {"name": "as_json", "flags": ["--json"], "type": "bool", "default": False, "help": "Print the result as JSON on stdout, and nothing else there."},
    {"name": "quiet", "flags": ["--quiet", "-q"], "type": "bool", "default": False, "help": "Print nothing but errors: the exit code tells."},
    {"name": "verbose", "flags": ["--verbose", "-v"], "type": "bool", "default": False, "help": "Tell on stderr what is being done, step by step."},
)  # fmt: skip
"""Options of every command."""
_TYPES: Mapping[str, Any] = {"str": str, "int": int, "float": float, "bool": bool, "Path": Path}
_WORDS = {"int": ("a whole number", int), "float": ("a number", float)}


@cache
def command(name: str) -> Any:
    """Build a command from its surface; the module behind it is loaded when it is called."""
    told = surface()[name]
    alone = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=HELP)
    alone.command(name=name, cls=Command, help=told["help"])(_caller(name, told["parameters"]))
    return typer.main.get_command(alone)


def _caller(name: str, parameters: list[dict[str, Any]]) -> Callable[..., None]:
    """A function with a command's parameters, that imports the command and calls it."""

    def call(as_json: bool, quiet: bool, verbose: bool, **given: Any) -> None:
        with shown_as(Mode(as_json, quiet, verbose)):
            with leaving_at_once():
                found = function(name)
            found(**given)

    signature = [_parameter(told) for told in (*parameters, *_OUTPUT)]
    call.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in signature}
    return call


def _parameter(told: Mapping[str, Any]) -> inspect.Parameter:
    kind, many, required = told["type"], told.get("many", False), told.get("required", False)
    shared: dict[str, Any] = {"help": told.get("help"), "rich_help_panel": told.get("panel")}
    hint: Any = Literal[tuple(told["choices"])] if told.get("choices") else _TYPES[kind]
    if kind in _WORDS:
        shared["parser"] = _reader(kind, told.get("min"), told.get("max"))
        hint = Any  # the reader says what it is
    if kind != "bool" and not told.get("choices"):
        shared["metavar"] = told.get("metavar") or _metavar(told)
    info = typer.Argument(**shared) if told.get("argument") else typer.Option(*told.get("flags", ()), **shared)
    hint = list[hint] if many else hint
    default = told.get("default")
    return inspect.Parameter(
        told["name"],
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if required else default,
        annotation=Annotated[hint if required or default is not None else hint | None, info],
    )


def _metavar(told: Mapping[str, Any]) -> str:
    """The word for a value in the help: `<float>`, `<int 0..9>`, `<float ...>` where it may be repeated."""
    word = {"str": "text", "Path": "path"}.get(told["type"], told["type"])
    least, most = told.get("min"), told.get("max")
    ends = ("" if least is None else str(least), "" if most is None or most > 1e9 else str(most))
    bounds = f" {'..'.join(ends)}" if any(ends) else ""
    return f"<{word}{bounds}{' ...' if told.get('many') else ''}>"


def _reader(kind: str, least: float | None, most: float | None) -> Callable[[Any], Any]:
    """A parser of numbers whose mistakes are told in words."""
    noun, make = _WORDS[kind]

    def read(text: Any) -> Any:
        try:
            value = make(text)
        except (ValueError, OverflowError):
            raise typer.BadParameter(f"{text!r} is not {noun}.") from None
        if (least is not None and not value >= least) or (most is not None and not value <= most):
            room = f"{-math.inf if least is None else least} to {math.inf if most is None else most}"
            raise typer.BadParameter(f"{text} is not within {room}.")
        return value

    return read


class Commands(typer.core.TyperGroup):
    """A group that knows the names of its commands and what they do, and builds the one that is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the order of the work."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command's entry for help; None if there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        return typer.core.TyperCommand(cmd_name, help=summary(cmd_name), short_help=summary(cmd_name), rich_markup_mode=None)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the words call, with its parameters."""
        name, found, rest = super().resolve_command(ctx, args)
        return (name, found, rest) if found is None else (name, command(str(found.name)), rest)
