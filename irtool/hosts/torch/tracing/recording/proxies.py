"""Proxies: they stand for values while a module is traced."""

from __future__ import annotations

import operator
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

AUGMENTED: dict[Callable[..., Any], Callable[..., Any]] = {
    operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
    operator.itruediv: operator.truediv, operator.ifloordiv: operator.floordiv, operator.imod: operator.mod, operator.ipow: operator.pow,
    operator.iand: operator.and_, operator.ior: operator.or_, operator.ixor: operator.xor,
    operator.ilshift: operator.lshift, operator.irshift: operator.rshift,
}  # fmt: skip
"""In-place operators (`x += y`), and those that compute the same without writing into x. Tensors have no `@=` that writes."""


class TracedProxy(fx.Proxy):
    """Records `x += y` as the write into x that it is. torch's own proxy makes `x = x + y` of it, which any other name of x misses."""

    def __getattr__(self, name: str) -> TracedAttribute:
        return TracedAttribute(self, name)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.assign(self, index, value)  # type: ignore[attr-defined]

    @classmethod
    def __torch_function__(cls, orig_method: Any, types: Any, args: Any = None, kwargs: Any = None) -> Any:
        """Record a call, as torch's proxy does, which lists all of torch first to tell functions from methods: that outlasts a small net."""
        plain = type(orig_method) in (BuiltinFunctionType, FunctionType)
        if not plain or getattr(torch.Tensor, orig_method.__name__, None) is orig_method:
            return super().__torch_function__(orig_method, types, args, kwargs)
        args, kwargs = args or (), kwargs or {}
        tracers = {id(leaf.tracer): leaf.tracer for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, fx.Proxy)}
        if len(tracers) != 1:
            return super().__torch_function__(orig_method, types, args, kwargs)
        tracer: Any = next(iter(tracers.values()))
        return tracer.create_proxy("call_function", orig_method, args, kwargs, name=tracer.graph._target_to_str(orig_method.__name__))


class TracedAttribute(fx.proxy.Attribute):
    """A proxy of `x.mT`, which is x in another order, and of other attributes."""

    __setitem__ = TracedProxy.__setitem__


class TracedParameter(fx.proxy.ParameterProxy):
    """A proxy of a parameter, whose sizes are plain numbers. `weight.data = ...` is a write into it."""

    def __getattr__(self, name: str) -> TracedAttribute:
        made = TracedAttribute(self, name)
        if name == "data":
            _ = made.node  # it is read here, before what may be written into it later
            self.__dict__.setdefault("held", []).append(made)
        return made

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "data":
            super().__setattr__(name, value)
        elif not (isinstance(value, fx.Proxy) and value.node.target in AUGMENTED):  # `weight.data *= mask` wrote already
            for read in self.__dict__.pop("held", ()):
                _set_aside(read)
            self.data.copy_(value)
            self.__dict__.pop("held")  # that was the write


def _set_aside(read: TracedAttribute) -> None:
    """Keep what was read of a parameter before another tensor takes its place: a copy, since the write goes into the parameter."""
    node = read.node
    with node.graph.inserting_after(node):
        copied = node.graph.call_method("clone", (node,))
    node.replace_all_uses_with(copied, delete_user_cb=lambda user: user is not copied and not _writes(user))
    read._node = copied


def _writes(node: fx.Node) -> bool:
    return node.target in AUGMENTED or str(node.target).endswith("_")


def _augmented(function: Callable[..., Any]) -> Callable[[fx.Proxy, Any], Any]:
    def write(self: fx.Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {}, name=AUGMENTED[function].__name__)

    return write


for _kind in (TracedProxy, TracedAttribute, TracedParameter):
    for _function in AUGMENTED:
        setattr(_kind, f"__{_function.__name__}__", _augmented(_function))


def _as_plain(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Make a method that takes a proxy's value for a plain number, which the tracer is told."""

    def plain(self: Any) -> Any:
        self.tracer.written(self)
        return convert(self.value)

    return plain


class ConcreteProxy(TracedProxy):
    """A proxy that knows its value for the example inputs, so that Python control flow on shapes resolves."""

    value: Any
    tracer: Any

    def __getattr__(self, name: str) -> Any:
        """Record an attribute with its value (`x.shape`); methods are recorded when they are called."""
        held = getattr(self.value, name, None) if "value" in self.__dict__ else None
        if held is None or callable(held):
            return super().__getattr__(name)
        if isinstance(held, bool | torch.dtype | torch.layout):
            return held
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    __len__ = _as_plain(len)
    __int__ = __index__ = _as_plain(int)
    __float__ = _as_plain(float)

    def __contains__(self, item: Any) -> bool:
        if isinstance(self.value, torch.Size):  # a decision by sizes, which is recorded one by one
            return any(size == item for size in self)
        return item in self.value

    def dim(self) -> int:
        return int(self.value.dim())

    @property
    def ndim(self) -> int:
        return int(self.value.ndim)

    @property
    def dtype(self) -> torch.dtype:
        return self.value.dtype

    @property
    def requires_grad(self) -> bool:
        return False

    @property
    def is_cuda(self) -> bool:
        return False
