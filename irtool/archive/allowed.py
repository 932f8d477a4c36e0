"""Everything that a saved program may name. A name in a file is looked up in these tables and never imported.

An archive can come from anyone. A node's target, a module's class and an attribute's name are strings in it, so what
is not listed here cannot be reached, whatever the file says.
"""

from __future__ import annotations

import builtins
import collections
import inspect
import math
import operator
import re
import sys
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from irtool.ir.channel_select import ChannelSelect


class Refused(Exception):
    """A file names something that irtool does not run."""


class NotData(Exception):
    """A program holds something that cannot be written as data; the text says what."""


BUILTINS = (
    "abs",
    "bool",
    "divmod",
    "float",
    "getattr",
    "int",
    "len",
    "list",
    "max",
    "min",
    "pow",
    "range",
    "round",
    "slice",
    "sum",
    "tuple",
)

ATTRIBUTES = frozenset("""
T H mT mH data device dtype grad imag indices is_cpu is_cuda is_meta is_mps is_quantized is_sparse itemsize layout names nbytes ndim real
requires_grad shape values
""".split())  # fmt: skip
"""What `getattr` may read: with dunder names one could walk from a tensor to `os.system`."""

_TORCH_EXTRA = ("_assert", "sym_int", "sym_float", "sym_max", "sym_min", "sym_not", "sym_ite", "sym_sqrt", "sym_sum")
_FILES = frozenset({"from_file", "save", "load"})
_CALLERS = frozenset({"attrgetter", "call", "itemgetter", "methodcaller"})
_DENIED_METHODS = frozenset({"apply_", "backward", "map_", "map2_", "module_load", "register_hook", "register_post_accumulate_grad_hook", "share_memory_"})  # fmt: skip
_OTHER_METHODS = frozenset({"get", "items", "keys"})
"""Methods of what is no tensor: dicts of inputs and outputs."""

_NAME = re.compile(r"[A-Za-z0-9_\-]+")


@cache
def functions() -> dict[str, Callable[..., Any]]:
    """The functions that a program may call, by the name they have in a file."""
    import torchvision.ops  # late: it takes a second to import, and `import irtool` need not wait for it

    spaces: tuple[tuple[str, Any, Iterable[str]], ...] = (
        ("torch", torch, (*vars_of(torch._C._VariableFunctions), *torch.functional.__all__, *_TORCH_EXTRA)),
        ("torch.nn.functional", F, [name for name in vars_of(F) if _is_own(getattr(F, name), F.__name__)]),
        ("torch._C._nn", torch._C._nn, vars_of(torch._C._nn)),
        ("torch.linalg", torch.linalg, vars_of(torch.linalg)),
        ("torch.fft", torch.fft, vars_of(torch.fft)),
        ("torch.special", torch.special, vars_of(torch.special)),
        ("operator", operator, [name for name in operator.__all__ if name not in _CALLERS]),
        ("math", math, vars_of(math)),
        ("builtins", builtins, BUILTINS),
        ("collections", collections, ("OrderedDict",)),
        ("torchvision.ops", torchvision.ops, torchvision.ops.__all__),
    )
    found: dict[str, Callable[..., Any]] = {}
    for space, owner, names in spaces:
        for name in names:
            function = getattr(owner, name, None)
            if name not in _FILES and (inspect.isroutine(function) or space in ("builtins", "collections")):
                found[f"{space}.{name}"] = function  # type: ignore[assignment]
    return found


def vars_of(owner: Any) -> list[str]:
    """The public names of a module or class."""
    return [name for name in dir(owner) if not name.startswith("_")]


def _is_own(function: Any, module: str) -> bool:
    """Whether a function was defined in `module` or in C++, rather than imported there."""
    return inspect.isbuiltin(function) or (inspect.isfunction(function) and function.__module__ == module)


@cache
def _function_names() -> dict[int, str]:
    names: dict[int, str] = {}
    for name, function in functions().items():
        names.setdefault(id(function), name)
    return names


def function_name(function: Any) -> str:
    """What a function is called in a file.

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
    """An operator overload of ATen or torchvision that computes values; None for one that does anything else (`aten.save`)."""
    parts = name.split(".")
    if parts[2:3] == ["torchvision"]:
        import torchvision.ops  # noqa: F401  registers them
    if len(parts) != 5 or parts[2] not in ("aten", "torchvision") or not all(map(str.isidentifier, parts)) or parts[3].startswith("__"):
        return None
    found = getattr(getattr(getattr(torch.ops, parts[2]), parts[3], None), parts[4], None)
    if not isinstance(found, torch._ops.OpOverload) or parts[3] in _FILES:
        return None
    return found if found._schema.returns or "assert" in parts[3] else None


def check_method(name: str, error: type[Exception]) -> str:
    """The name of a method that a program may call on a value.

    Raises:
        error: another name.
    """
    is_method = (
        isinstance(name, str) and not name.startswith("_") and callable(getattr(torch.Tensor, name, None)) and name not in _DENIED_METHODS
    )
    if not is_method and name not in _OTHER_METHODS:
        raise error(f"calls a method {name!r}, which no tensor has")
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
    """An argument's name. Raises `error` for anything else."""
    if not isinstance(name, str) or not name.isidentifier():
        raise error(f"has an argument called {name!r}")
    return name


def class_name(kind: type) -> str:
    """What a leaf module's class is called in a file.

    Raises:
        NotData: it belongs to the user.
    """
    name = f"{kind.__module__}.{kind.__qualname__}"
    if _class(name) is not kind:
        raise NotData(f"is a {name}, a class of your own")
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
    """A module class that torch.nn or torchvision.ops defines, or `ChannelSelect`."""
    module, _, own = name.rpartition(".")
    if module != ChannelSelect.__module__ and not module.startswith(("torch.nn.modules.", "torchvision.ops.")):
        return None
    if module.startswith("torchvision."):
        import torchvision.ops  # noqa: F401  fills sys.modules
    found = vars(sys.modules[module]).get(own) if module in sys.modules else None
    return found if isinstance(found, type) and issubclass(found, nn.Module) and found.__module__ == module else None
