"""Calls of torch that no tensor of the program takes part in, or as a constant alone, but sizes that it computes: recorded like others.

`torch.zeros(n, 4, h, w)` and `buffer.expand(x.shape[0], -1, -1)` reach no proxy's `__torch_function__`: torch reads their arguments
before it asks, and refuses what is no number.
"""

from __future__ import annotations

import functools
import operator
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

_FUNCTIONS: tuple[tuple[Any, str], ...] = (
    (
        torch,
        "zeros ones empty full rand randn randint arange linspace eye narrow reshape broadcast_to tile roll repeat_interleave split chunk",
    ),
    (F, "interpolate pad one_hot affine_grid"),
)
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
            wrapped[id(original)] = made = _function(original)
            _exchange(owner, name, made, done)
    for name in _METHODS.split():
        _exchange(torch.Tensor, name, _method(name, getattr(torch.Tensor, name)), done)
    _exchange(torch.Tensor, "__getitem__", _item(torch.Tensor.__getitem__), done)
    for place in {type(module).__module__ for module in modules}:
        space = vars(sys.modules[place]) if place in sys.modules and not place.startswith("torch.") else {}
        for name, held in list(space.items()):
            if id(held) in wrapped:
                done.append((space, name, held))
                space[name] = wrapped[id(held)]
    try:
        yield
    finally:
        for owner, name, before in reversed(done):
            if isinstance(owner, dict):
                owner[name] = before
            elif before is None:
                delattr(owner, name)
            else:
                setattr(owner, name, before)


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


def _function(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        tracer = _tracer((*args, *kwargs.values()))
        return original(*args, **kwargs) if tracer is None else tracer.create_proxy("call_function", original, args, kwargs)

    return call


def _method(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
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
