"""Other names that torch has for a function, and for its arguments: a graph has the first of them, which all tables know.

Torch's own documentation says of each that it is an alias; a test holds this table against it.
"""

from __future__ import annotations

import types
from functools import cache
from typing import Any

import torch

from irtool.hosts.torch.operators import FUNCTIONS

ALIASES = """
abs absolute | acos arccos | acosh arccosh | asin arcsin | asinh arcsinh | atan arctan | atan2 arctan2 | atanh arctanh
clamp clip | cat concat concatenate | div divide true_divide | ge greater_equal | gt greater | le less_equal | lt less | ne not_equal
movedim moveaxis | mul multiply | neg negative | outer ger | sub subtract | transpose swapaxes swapdims | trunc fix | vstack row_stack
erf special_erf | erfc special_erfc | erfinv special_erfinv | exp2 special_exp2 | expm1 special_expm1 | log1p special_log1p | logit special_logit
log_softmax special_log_softmax | logsumexp special_logsumexp | round special_round | sigmoid special_expit | sinc special_sinc
softmax special_softmax | xlogy special_xlogy | digamma special_digamma special_psi | lgamma special_gammaln | i0 special_i0
diagonal linalg_diagonal | matmul linalg_matmul | trapezoid trapz
"""
"""The canonical name, then those that mean the same. What has an in-place form has one under each name."""
_NUMPY = {"axis": "dim", "keepdims": "keepdim"}
"""NumPy's names of arguments, which torch's compiled functions take, too. Of operators that irtool does not know they are left as they
are: a quantisation has an `axis` of its own."""
_OF = {"transpose": {"axis0": "dim0", "axis1": "dim1"}}
"""Arguments that an alias calls otherwise, by the canonical name."""
CANONICAL = {
    alias: first for line in ALIASES.replace("|", "\n").strip().splitlines() for first, *others in [line.split()] for alias in others
}
_SPACES = (torch, torch.special, torch.linalg)


@cache
def _functions() -> dict[int, Any]:
    """The canonical function of each function that has another name, by its identity."""
    found: dict[int, Any] = {}
    for alias, name in CANONICAL.items():
        for ending in ("", "_"):
            first = getattr(torch, name + ending, None)
            for space in _SPACES:
                other = getattr(space, alias.removeprefix("special_").removeprefix("linalg_") + ending, None)
                named = getattr(other, "__name__", "") == alias + ending
                if first is not None and other is not first and named:
                    found[id(other)] = first
    return found


def canonical(kind: str, target: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return a call's target and its keyword arguments under the names that irtool's tables have.

    Args:
        kind: as `fx.Node.op`.
        target: a function, an overload, or the name of a method.
        kwargs: the keyword arguments.
    """
    if kind == "call_method":
        return _named(target), _renamed(kwargs, _named(target)) if kwargs else kwargs
    if kind != "call_function":
        return target, kwargs
    if isinstance(target, torch._ops.OpOverload):
        return _overload(target), kwargs
    found: Any = _functions().get(id(target), target)
    name = str(getattr(found, "__name__", ""))
    if kwargs and isinstance(found, types.BuiltinFunctionType) and getattr(torch, name, None) is found:
        kwargs = _renamed(kwargs, name)
    return found, kwargs


def _named(name: str) -> str:
    base = name.removesuffix("_")
    return CANONICAL[base] + name[len(base) :] if base in CANONICAL else name


def _renamed(kwargs: dict[str, Any], name: str) -> dict[str, Any]:
    names = {**_NUMPY, **_OF.get(name, {})} if name in FUNCTIONS else {}
    return {names.get(key, key): value for key, value in kwargs.items()}


@cache
def _overload(target: torch._ops.OpOverload) -> torch._ops.OpOverload:
    """The overload of the canonical ATen operator that takes the same types; the same overload where there is none."""
    space, name = target._schema.name.split("::")
    first = _named(name)
    packet = getattr(torch.ops.aten, first, None) if space == "aten" and first != name else None
    if packet is None:
        return target
    made = (getattr(packet, overload) for overload in packet.overloads())
    return next((overload for overload in made if _types(overload) == _types(target)), target)


def _types(overload: torch._ops.OpOverload) -> list[str]:
    return [str(argument.type) for argument in overload._schema.arguments]
