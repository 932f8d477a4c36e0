"""Calls of torch that no tensor of the program takes part in, or as a constant alone, but sizes that it computes: recorded like others.

`torch.zeros(n, 4, h, w)` and `buffer.expand(x.shape[0], -1, -1)` reach no proxy's `__torch_function__`: torch reads their arguments
before it asks, and refuses what is no number.
"""

from __future__ import annotations

import dis
import functools
import operator
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

_FUNCTIONS: tuple[tuple[Any, str], ...] = (
    (
        torch,
        "tensor as_tensor scalar_tensor zeros ones full rand randn randint arange linspace logspace eye narrow reshape broadcast_to tile roll repeat_interleave split chunk",
    ),
    (torch, "hann_window hamming_window blackman_window bartlett_window kaiser_window"),
    (torch.fft, "fftfreq rfftfreq"),
    (torch, "empty empty_like"),
    (F, "interpolate pad one_hot affine_grid"),
)
_DEFINITE = {"empty": torch.zeros, "empty_like": torch.zeros_like, "new_empty": "new_zeros"}
"""Instead of memory as it is found, zeros are recorded: what is computed from them is the same each time."""
_METHODS = (
    "expand view reshape repeat tile unflatten narrow select split chunk roll unfold repeat_interleave index_select "
    "new_zeros new_ones new_full new_empty"
)


@contextmanager
def recorded_sizes(modules: Iterable[nn.Module]) -> Iterator[None]:
    """While a tracer is at work, record such calls where an argument is one that it follows.

    Args:
        modules: whose code may have imported the functions by name.
    """
    done: list[tuple[Any, str, Any]] = []
    wrapped: dict[int, Callable[..., Any]] = {}
    for owner, names in _FUNCTIONS:
        for name in names.split():
            original = getattr(owner, name)
            wrapped[id(original)] = made = _function(original, _DEFINITE.get(name))
            _exchange(owner, name, made, done)
    for name in _METHODS.split():
        _exchange(torch.Tensor, name, _method(_DEFINITE.get(name, name), getattr(torch.Tensor, name)), done)
    _exchange(torch.Tensor, "__getitem__", _item(torch.Tensor.__getitem__), done)
    for space in _namespaces(modules):
        for name, held in list(space.items()):
            if id(held) in wrapped:
                done.append((space, name, held))
                space[name] = wrapped[id(held)]
        _lend(space, _PYTHON, done)
    try:
        yield
    finally:
        _put_back(done)


@contextmanager
def symbolic_numbers(modules: Iterable[nn.Module]) -> Iterator[None]:
    """While torch.export is at work, `int(n / 16)` and the like stay functions of the sizes: plain `int` asks for a number, and
    torch then holds the example's.

    Args:
        modules: the model's.
    """
    done: list[tuple[Any, str, Any]] = []
    for space in _namespaces(modules):
        _lend(space, _PYTHON, done)
    try:
        yield
    finally:
        _put_back(done)


def _lend(space: dict[str, Any], names: dict[str, Any], done: list[tuple[Any, str, Any]]) -> None:
    """Let the code of a module find these before Python's own, where it has none of that name."""
    if _asks_for_the_class(space):
        return
    for name, made in names.items():
        if name not in space:
            done.append((space, name, _ABSENT))
            space[name] = made


def _put_back(done: list[tuple[Any, str, Any]]) -> None:
    for owner, name, before in reversed(done):
        if before is _ABSENT:
            del owner[name]
        elif isinstance(owner, dict):
            owner[name] = before
        elif before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def _namespaces(modules: Iterable[nn.Module]) -> list[dict[str, Any]]:
    """The globals of the methods of the user's classes, of hooks, and of the functions of the same packages that they can call."""
    modules = list(modules)
    kinds = {kind for module in modules for kind in type(module).__mro__ if not kind.__module__.startswith(_NOT_THE_USERS)}
    waiting = [held.__globals__ for kind in kinds for held in vars(kind).values() if isinstance(held, FunctionType)]
    waiting += [hook.__globals__ for module in modules for hook in _hooks(module) if isinstance(hook, FunctionType)]
    packages = {str(space.get("__name__", "")).partition(".")[0] for space in waiting}
    found: dict[int, dict[str, Any]] = {}
    while waiting:
        space = waiting.pop()
        if id(space) not in found:
            found[id(space)] = space
            called = (held for held in list(space.values()) if isinstance(held, FunctionType))
            waiting += [held.__globals__ for held in called if held.__module__.partition(".")[0] in packages]
    return [space for space in found.values() if not str(space.get("__name__", "")).startswith(_NOT_THE_USERS)]


def _hooks(module: nn.Module) -> list[Any]:
    return [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]


_NOT_THE_USERS = ("torch.", "irtool.", "builtins")


_ABSENT = object()
"""Noted of a name that was not there before."""


class _Number(type):
    """`int` and `float` while a tracer is at work: what they make of a number of the program is recorded, all else is theirs."""

    plain: type
    symbolic: Callable[[Any], Any]

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and isinstance(args[0], _SYMBOLS):
            return cls.symbolic(args[0])
        tracer = _tracer(args)
        return cls.plain(*args, **kwargs) if tracer is None else tracer.create_proxy("call_function", cls.plain, args, {})

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, cls.plain)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, cls.plain)

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is cls.plain

    def __hash__(cls) -> int:
        return hash(cls.plain)

    def __getattr__(cls, name: str) -> Any:
        return getattr(cls.plain, name)


_SYMBOLS = (torch.SymInt, torch.SymFloat)
"""Types that torch.export has in place of sizes."""


class _Int(metaclass=_Number):
    plain = int
    symbolic = staticmethod(torch.sym_int)


class _Float(metaclass=_Number):
    plain = float
    symbolic = staticmethod(torch.sym_float)


_EXTREMES: dict[Any, Callable[[Any, Any], Any]] = {max: torch.sym_max, min: torch.sym_min}


def _python(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        if original in _EXTREMES and not kwargs and len(args) == 2 and any(isinstance(arg, _SYMBOLS) for arg in args):
            return _EXTREMES[original](*args)
        tracer = _tracer(args) if not kwargs else None
        return original(*args, **kwargs) if tracer is None else tracer.python_call(original, args)

    return call


def _isinstance(value: Any, kinds: Any) -> bool:
    """`isinstance` while a tracer is at work: of what a proxy stands for, where its tracer knows that."""
    answer = getattr(value.tracer, "is_instance", isinstance) if isinstance(value, fx.Proxy) else isinstance
    return bool(answer(value, kinds))


def answers_kinds(function: Any) -> bool:
    """Whether the code of a function finds that `isinstance` before Python's own."""
    return getattr(function, "__globals__", {}).get("isinstance") is _isinstance


_PYTHON: dict[str, Any] = {
    "int": _Int, "float": _Float, "isinstance": _isinstance, **{made.__name__: _python(made) for made in (round, max, min, len)}
}  # fmt: skip
"""Functions of Python's own that programs compute sizes with, or choose by: a module of the user's finds these first."""


def _asks_for_the_class(space: dict[str, Any]) -> bool:
    """Whether code of a module says `type(x) is int` or the like: nothing that stands for a class is the class itself."""
    found = list(space.values())
    held = [*found, *(member for kind in found if isinstance(kind, type) for member in vars(kind).values())]
    codes = [function.__code__ for function in held if isinstance(function, FunctionType) and function.__globals__ is space]
    for code in codes:
        if "int" in code.co_names or "float" in code.co_names:
            steps = list(dis.get_instructions(code))
            for number, step in enumerate(steps):
                if step.opname == "IS_OP" and any(before.argval in ("int", "float") for before in steps[max(0, number - 2) : number]):
                    return True
    return False


def _exchange(owner: Any, name: str, made: Any, done: list[tuple[Any, str, Any]]) -> None:
    """Set an attribute; the one that was there is noted, None where it is inherited."""
    done.append((owner, name, vars(owner).get(name)))
    setattr(owner, name, made)


def _tracer(args: Any) -> Any:
    """The tracer of the first argument that stands for a value of the program; None if there is none."""
    for arg in args:
        if isinstance(arg, fx.Proxy):
            return arg.tracer
        if isinstance(arg, slice):
            found = _tracer((arg.start, arg.stop, arg.step))
        elif isinstance(arg, tuple | list):
            found = _tracer(arg)
        else:
            continue
        if found is not None:
            return found
    return None


def _function(original: Callable[..., Any], target: Any = None) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        tracer = _tracer((*args, *kwargs.values()))
        return original(*args, **kwargs) if tracer is None else tracer.create_proxy("call_function", target or original, args, kwargs)

    return call


def _method(name: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        tracer = _tracer((*args, *kwargs.values()))
        return original(self, *args, **kwargs) if tracer is None else tracer.create_proxy("call_method", name, (self, *args), kwargs)

    return call


def _item(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(self: Any, index: Any) -> Any:
        tracer = _tracer(index if isinstance(index, tuple | list) else (index,))
        return original(self, index) if tracer is None else tracer.create_proxy("call_function", operator.getitem, (self, index), {})

    return call
