"""What stands for a value while a module is traced: proxies, and flags that say who asked for them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

AUGMENTED: dict[Callable[..., Any], Callable[..., Any]] = {
    operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul, operator.imatmul: operator.matmul,
    operator.itruediv: operator.truediv, operator.ifloordiv: operator.floordiv, operator.imod: operator.mod, operator.ipow: operator.pow,
    operator.iand: operator.and_, operator.ior: operator.or_, operator.ixor: operator.xor,
    operator.ilshift: operator.lshift, operator.irshift: operator.rshift,
}  # fmt: skip
"""What `x += y` and its like call, and what computes the same without writing into x."""


class TracedProxy(fx.Proxy):
    """Records `x += y` as the write into x that it is. torch's own proxy makes `x = x + y` of it, which any other name of x misses."""


def _augmented(function: Callable[..., Any]) -> Callable[[TracedProxy, Any], Any]:
    def write(self: TracedProxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {}, name=AUGMENTED[function].__name__)

    return write


for _function in AUGMENTED:
    setattr(TracedProxy, f"__{_function.__name__}__", _augmented(_function))


class ConcreteProxy(TracedProxy):
    """A proxy that knows its value for the example inputs, so that Python control flow on shapes resolves."""

    value: Any

    def __len__(self) -> int:
        return len(self.value)

    def __int__(self) -> int:
        return int(self.value)

    def __index__(self) -> int:
        return int(self.value)

    def __float__(self) -> float:
        return float(self.value)

    def __contains__(self, item: Any) -> bool:
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


class Flag(int):
    """A module's `training` while it is traced: handed on it is the plain flag, decided by it leaves a note."""

    plain: bool
    asked: Callable[[], None]

    def __new__(cls, plain: bool, asked: Callable[[], None]) -> Flag:
        made = super().__new__(cls, plain)
        made.plain, made.asked = plain, asked
        return made

    def __bool__(self) -> bool:
        self.asked()
        return self.plain
