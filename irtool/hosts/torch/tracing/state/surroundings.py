"""State that `forward` may change outside of its module's attributes, compared before and after: hooks, classes, globals, torch's state."""

from __future__ import annotations

import inspect
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from types import CodeType, FunctionType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from irtool.hosts.torch.modules import HOOKS

_CONTAINERS = (dict, list, set, deque, SimpleNamespace)
_PLAIN = (int, float, str, bool, type(None), tuple, torch.Tensor)
_FOREIGN = ("torch.", "builtins", "collections", "_thread", "threading", "logging", "functools", "numpy")
_MOST = 2_000
"""Containers that are looked into from one place: a model may hold a whole training program."""


def holds(value: Any) -> bool:
    """Whether a value is a container, or an object of a class of the user's that holds data."""
    if isinstance(value, _CONTAINERS):
        return True
    kind = type(value)
    plain = not isinstance(value, (nn.Module, torch.Tensor, type, ModuleType, FunctionType)) and not kind.__module__.startswith(_FOREIGN)
    return plain and kind.__module__ != "torch" and isinstance(getattr(value, "__dict__", None), dict)


def contents(value: Any) -> list[tuple[Any, Any]]:
    """List what a container and all in it hold now; nothing for what is none."""
    return list(_contents(value, set())) if holds(value) else []


def _contents(value: Any, seen: set[int]) -> Iterator[tuple[Any, Any]]:
    """A container and all containers in it, each with what it holds now."""
    todo = [value]
    while todo and len(seen) < _MOST:
        found = todo.pop(0)
        if id(found) in seen:
            continue
        seen.add(id(found))
        content = content_of(found)
        yield found, content
        todo += [member for member in (content.values() if isinstance(content, Mapping) else content) if holds(member)]


def content_of(value: Any) -> Any:
    """A shallow copy of what a container holds; methods of a subclass, which may compute what they give, are not asked."""
    if isinstance(value, dict):
        return dict(zip(dict.keys(value), dict.values(value), strict=True))
    for kind in (list, deque):
        if isinstance(value, kind):
            return list(kind.__iter__(value))  # type: ignore[arg-type]
    return set(set.__iter__(value)) if isinstance(value, set) else dict(vars(value))


def same(now: Any, before: Any) -> bool:
    """Whether two contents are of the very same objects."""
    if isinstance(now, dict):
        return list(now) == list(before) and all(now[key] is before[key] for key in now)
    if isinstance(now, list):
        return len(now) == len(before) and all(a is b for a, b in zip(now, before, strict=True))
    return bool({id(member) for member in now} == {id(member) for member in before})


def refill(value: Any, content: Any) -> bool:
    """Let a container hold again what it held."""
    held: Any = value if isinstance(value, _CONTAINERS) and not isinstance(value, SimpleNamespace) else vars(value)
    kind: Any = next(kind for kind in (OrderedDict, dict, list, deque, set) if isinstance(held, kind))
    kind.clear(held)
    if not isinstance(held, dict):
        kind.extend(held, content) if isinstance(held, (list, deque)) else kind.update(held, content)
    for key, member in content.items() if isinstance(held, dict) else ():
        kind.__setitem__(held, key, member)
    return True


class Surroundings:
    """Hooks of a model's modules, data of their classes, globals that their code names, and torch's own state."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        found = list({id(module): module for module in modules}.values())
        self._hooks = [(table, dict(table)) for module in found for key in HOOKS if isinstance(table := module.__dict__.get(key), dict)]
        self._places: list[tuple[Any, str, Any]] = []
        kinds = {type(module) for module in found if not type(module).__module__.startswith("torch.nn")}
        named = {(id(owner), name): (owner, name) for kind in kinds for owner, name in _named(kind)}  # type: ignore[arg-type]
        hooks = [hook for _, table in self._hooks for hook in table.values()]
        held: list[Any] = [value for hook in hooks for value in reached(hook)]
        for owner, name in named.values():
            table = owner if isinstance(owner, dict) else vars(owner)
            if name in table:
                value = table[name]
                self._places.append((owner, name, value))
                held.append(value)
        self._contents = [entry for value in held if holds(value) for entry in contents(value)]
        self._state = [(put, get()) for get, put in _STATE]

    def put_back(self) -> None:
        """Undo."""
        for table, before in self._hooks:
            if len(table) != len(before) or list(table) != list(before):
                table.clear()
                table.update(before)
        for owner, name, value in self._places:
            table = owner if isinstance(owner, dict) else vars(owner)
            if table.get(name) is not value:
                owner.__setitem__(name, value) if isinstance(owner, dict) else setattr(owner, name, value)
        for value, content in self._contents:
            if not same(content_of(value), content):
                refill(value, content)
        for (put, before), (get, _) in zip(self._state, _STATE, strict=True):
            now = get()
            if type(now) in (bool, int, torch.dtype) and now == before:
                continue
            put(before)


@cache
def _named(kind: type) -> tuple[tuple[Any, str], ...]:
    """Places in which the code of a class may leave data: attributes of its own classes, and names of its modules that it mentions."""
    found: list[tuple[Any, str]] = []
    for base in kind.__mro__:
        if base.__module__.startswith(("torch.", "builtins")) or base is object:
            continue
        for name, value in vars(base).items():
            if not name.startswith("__") and (isinstance(value, _PLAIN) or holds(value)):
                found.append((base, name))
        for function in vars(base).values():
            if isinstance(function, FunctionType):
                found += _globals(function)
    return tuple(found)


def _globals(function: FunctionType) -> list[tuple[Any, str]]:
    spaces = function.__globals__
    return [
        (spaces, name)
        for name in _names(function.__code__)
        if name in spaces and not name.startswith("__") and (isinstance(spaces[name], _PLAIN) or holds(spaces[name]))
    ]


def _names(code: CodeType) -> set[str]:
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*inner)


def function_of(hook: Any) -> Any:
    """A hook's function, which has code of Python's if anything has."""
    function = getattr(hook, "func", hook)
    return function if hasattr(function, "__code__") else getattr(function, "__call__", None)  # noqa: B004


def reached(hook: Any) -> Iterator[Any]:
    """List where a hook may leave what it sees: containers that its function names, and the object that it is a method of."""
    function = function_of(hook)
    owner = getattr(function, "__self__", None)
    if hasattr(owner, "__dict__") and not isinstance(owner, nn.Module):  # modules of the model are put back anyway
        yield vars(owner)
    try:
        named = inspect.getclosurevars(function)
    except TypeError:  # no code of Python's
        return
    yield from named.nonlocals.values()
    yield from named.globals.values()


_STATE: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.get_rng_state, torch.set_rng_state),
    (random.getstate, random.setstate),
    (np.random.get_state, np.random.set_state),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (lambda: torch.backends.cudnn.benchmark, lambda value: setattr(torch.backends.cudnn, "benchmark", value)),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
)
"""How to read and how to set what is the same for a whole process."""
