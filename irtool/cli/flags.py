"""The fields of a dataclass as command line flags: one place says what an option is called, takes and means."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from typing import Annotated, Any

import typer


def with_flags(
    kind: type, leave_out: Collection[str] = (), defaults: Mapping[str, str] | None = None, panel: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator for a command that takes `**settings`: give it a flag for each field of a dataclass.

    A flag that is not given is None: whoever reads the settings knows the default. The help is that of the docstring's `Args`,
    and ends with the default: the field's own, or what `defaults` says. `panel` is the heading above them.
    """
    hints, helps = typing.get_type_hints(kind), described(kind)
    shown = {field.name: _default(field.default) for field in fields(kind)} | dict(defaults or {})
    flags = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                _optional(hints[field.name]), typer.Option(help=helps.get(field.name, "") + shown[field.name], rich_help_panel=panel)
            ],
        )
        for field in fields(kind)
        if field.name not in leave_out
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [parameter for parameter in signature.parameters.values() if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
        command.__signature__ = signature.replace(parameters=[*own, *flags])  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *flags)} | {"return": None}
        return command

    return decorate


def described(kind: type) -> dict[str, str]:
    """Read what a dataclass's docstring says about each field under `Args:`, on one line each."""
    text = inspect.getdoc(kind) or ""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", text, re.M | re.S)
    found: dict[str, str] = {}
    for names, about in re.findall(r"^    (\w[\w, ]*): (.*?)(?=^    \w|\Z)", section[1] if section else "", re.M | re.S):
        for name in names.split(", "):
            found[name] = " ".join(about.split())
    return found


def _default(value: Any) -> str:
    """The end of a help text; nothing for what is off or left to others."""
    if value is None or value == () or isinstance(value, bool):
        return ""
    return f" Default {', '.join(map(str, value)) if isinstance(value, tuple) else value}."


def _optional(hint: Any) -> Any:
    """The hint with None allowed; a tuple of any length is a flag that may be repeated."""
    if typing.get_origin(hint) is tuple:
        return list[typing.get_args(hint)[0]] | None  # type: ignore[misc]
    return hint | None
