"""Looks up what a saved program names: functions, methods, overloads, classes. Nothing is imported by a name from a file.

An archive can come from anyone. A node's target, a module's class and an attribute's name are strings in it, so what
is not in the tables (irtool/archive/operators.py, irtool/archive/layers.py) cannot be reached, whatever the file says.
"""

from __future__ import annotations

import builtins
import collections
import importlib
import keyword
import math
import operator
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from irtool.archive.kinds import LONGEST_TEXT, Row, row, rows
from irtool.archive.layers import layer_rows
from irtool.archive.operators import ATEN, SCHEMA_KINDS, SCHEMA_NAMES, SCHEMA_WORDS, TABLES, UNCHECKED, UNCHECKED_OVERLOADS
from irtool.hosts.torch.channel_select import ChannelSelect


class Refused(Exception):
    """A file names something that irtool does not run."""


class NotData(Exception):
    """A program holds something that cannot be written as data; the text says what."""


_PLACES = {
    "t": "torch", "F": "torch.nn.functional", "la": "torch.linalg", "fft": "torch.fft", "op": "operator", "math": "math", "py": "builtins",
    "col": "collections", "tv": "torchvision.ops",
}  # fmt: skip
_NAME = re.compile(r"(?!__)[A-Za-z0-9_\-]+")
_SHADOWS = frozenset(
    {"builtins", "collections", "device", "fx_pytree", "inf", "math", "nan", "operator", "pytree", "self", "torch", "torchvision"}
)
"""Names in the code that fx writes. An argument that is called so would stand where the code means torch."""


@cache
def functions() -> dict[str, Callable[..., Any]]:
    """The functions that a program may call, by the name they have in a file."""
    return {name: function for name, (function, _) in _function_rows().items()}


@cache
def _torchvision_ops() -> Any:
    """torchvision's operators; None without it: then no graph here calls one. Late, as it takes a second to import."""
    try:
        return importlib.import_module("torchvision.ops")
    except ImportError:
        return None


@cache
def _function_rows() -> dict[str, tuple[Callable[..., Any], Row]]:
    owners = {"torch": torch, "torch.nn.functional": F, "torch.linalg": torch.linalg, "torch.fft": torch.fft, "operator": operator,
              "math": math, "builtins": builtins, "collections": collections, "torchvision.ops": _torchvision_ops()}  # fmt: skip
    found: dict[str, tuple[Callable[..., Any], Row]] = {}
    for places, names, text in (line for table in TABLES for line in rows(table)):
        for place in places:
            for name in names if place != "." else ():
                function = getattr(owners[_PLACES[place]], name, None)
                if callable(function):
                    found[f"{_PLACES[place]}.{name}"] = function, row(text)
    return dict(sorted(found.items(), key=lambda item: [*_PLACES.values()].index(item[0].rpartition(".")[0])))


@cache
def _rows_by_function() -> dict[int, Row]:
    return {id(function): kinds for function, kinds in reversed(_function_rows().values())}


@cache
def methods() -> dict[str, Row]:
    """The methods of tensors that a program may call."""
    return {
        name: row(text)
        for table in TABLES
        for places, names, text in rows(table)
        for name in names
        if "." in places and callable(getattr(torch.Tensor, name, None))
    }


def row_of(target: Any) -> Row:
    """Return the row of a function, an overload, or a method by its name.

    Raises:
        Refused: it is not in the tables.
    """
    if isinstance(target, str):
        found = methods().get(target)
    elif isinstance(target, torch._ops.OpOverload):
        found = _schema_row(target)
    else:
        found = _rows_by_function().get(id(target))
    if found is None:
        raise Refused(f"calls {target!s:.80}, which no graph of irtool's calls")
    return found


@cache
def _schema_row(overload: torch._ops.OpOverload) -> Row | None:
    """The row of an ATen operator, from its schema; None for one that takes or gives what no program holds."""
    schema = overload._schema
    space, _, name = schema.name.partition("::")
    if space != "aten" or name not in ATEN or f"{name}.{schema.overload_name}" in UNCHECKED_OVERLOADS:
        return None
    if not torch._C._dispatch_has_kernel(overload._name):  # TorchScript's own, which trust their caller
        return None
    parts = []
    for index, argument in enumerate(schema.arguments):
        kinds = _schema_kinds(argument.name, str(argument.type))
        if kinds == "T" and index:
            kinds = "nT"  # a number stands for a tensor without axes
        writes = argument.alias_info is not None and argument.alias_info.is_write
        if kinds is None or (writes and (index > 0 or not name.endswith("_"))):
            return None
        parts.append(f"{argument.name}={kinds}")
    given = {str(result.type) for result in schema.returns}
    tensors = given <= {"Tensor", "List[Tensor]"} or name in ("sym_numel", "sym_size")  # those on plain numbers divide by zero unchecked
    return row(" ".join(parts)) if given and tensors else None


def _schema_kinds(name: str, kind: str) -> str | None:
    if name in UNCHECKED:
        return "0"
    if kind in ("str", "Optional[str]"):
        return SCHEMA_WORDS.get(name)
    return (SCHEMA_NAMES.get(name) if kind in _NUMBERS else None) or SCHEMA_KINDS.get(kind)


_NUMBERS = ("int", "Optional[int]", "number", "bool", "Optional[bool]")


@cache
def _function_names() -> dict[int, str]:
    names: dict[int, str] = {}
    for name, function in functions().items():
        names.setdefault(id(function), name)
    return names


def function_name(function: Any) -> str:
    """Return the name of a function in a file.

    Raises:
        NotData: it is not in the table.
    """
    if isinstance(function, torch._ops.OpOverload):
        name = f"torch.ops.{function!s}"
        if _overload(name) is function:
            return name
    name = _function_names().get(id(function), "")
    if not name:
        module = getattr(function, "__module__", None)
        raise NotData(f"calls {module + '.' if module else ''}{getattr(function, '__name__', function)}")
    return name


def function_called(name: str) -> Callable[..., Any]:
    """The function of that name.

    Raises:
        Refused: it is not in the table.
    """
    found = functions().get(name) if isinstance(name, str) else None
    if found is None and isinstance(name, str) and name.startswith("torch.ops."):
        found = _overload(name)
    if found is None:
        raise Refused(f"calls {name!r}, which no graph of irtool's calls")
    return found


def _overload(name: str) -> Any:
    """An overload of ATen that is in the table; None for another."""
    parts = name.split(".")
    if len(parts) != 5 or parts[2] != "aten" or parts[3] not in ATEN:
        return None
    found = (
        getattr(getattr(torch.ops.aten, parts[3]), parts[4], None) if parts[4] in getattr(torch.ops.aten, parts[3]).overloads() else None
    )
    return found if isinstance(found, torch._ops.OpOverload) and _schema_row(found) is not None else None


def check_method(name: str, error: type[Exception]) -> str:
    """The name of a method that a program may call on a tensor.

    Raises:
        error: another name.
    """
    if not isinstance(name, str) or name not in methods():
        raise error(f"calls a method {name!r}, which no graph of irtool's calls")
    return name


def check_path(path: str, error: type[Exception]) -> str:
    """A dotted path of plain names, as fx writes into generated code.

    Raises:
        error: another string: it could end the name and begin code of its own.
    """
    if not isinstance(path, str) or not all(_NAME.fullmatch(part) for part in path.split(".")):
        raise error(f"has a name {path!r} of other signs than letters, digits, _ and -")
    return path


def check_identifier(name: str, error: type[Exception]) -> str:
    """A name that fx writes into code as it stands. Raises `error` for anything else."""
    if not isinstance(name, str) or not name.isidentifier() or len(name) > LONGEST_TEXT:
        raise error(f"has an argument called {name!r:.60}")
    return name


def check_argument(name: str, error: type[Exception]) -> str:
    """The name of an argument of `forward`. Raises `error` for one that would hide a name that the code of a program reads."""
    if check_identifier(name, error) in _SHADOWS or f"builtins.{name}" in functions() or keyword.iskeyword(name):
        raise error(f"has an argument called {name!r}, which hides what its code calls")
    return name


def class_name(kind: type) -> str:
    """Return the name of a leaf module's class in a file.

    Raises:
        NotData: it belongs to the user.
    """
    name = f"{kind.__module__}.{kind.__qualname__}"
    if _class(name) is not kind:
        raise NotData(f"is a {name}, {'which no archive holds' if name.startswith('torch.') else 'a class of your own'}")
    return name


def class_called(name: str) -> type[nn.Module]:
    """The module class of that name.

    Raises:
        Refused: it is not in the table.
    """
    found = _class(name) if isinstance(name, str) else None
    if found is None:
        raise Refused(f"holds a module of class {name!r}, which no graph of irtool's holds")
    return found


def _class(name: str) -> type[nn.Module] | None:
    """A module class of the table by its full name."""
    found = _layers().get(name)
    return None if found is None else found[0]


@cache
def _layers() -> dict[str, tuple[type[nn.Module], Row, Row]]:
    """Classes, what they are called with, and their attributes, by full name."""
    others = {"ChannelSelect": ChannelSelect, "StochasticDepth": getattr(_torchvision_ops(), "StochasticDepth", None)}
    made = {}
    for names, call, attributes in layer_rows():
        for name in names:
            kind = others[name] if name in others else getattr(nn, name)
            if kind is None:
                continue
            made[f"{kind.__module__}.{name}"] = kind, row(call), row(attributes)
    return made


def call_row(module: nn.Module) -> Row:
    """Return the row of arguments that a module takes. Raises `Refused` for one of another class."""
    found = _layers().get(f"{type(module).__module__}.{type(module).__qualname__}")
    if found is None:
        raise Refused(f"calls a {type(module).__name__}, which no graph of irtool's calls")
    return found[1]


def attributes_of(kind: type[nn.Module]) -> Row:
    """The attributes of a class in the table, as a row."""
    return _layers()[f"{kind.__module__}.{kind.__qualname__}"][2]
