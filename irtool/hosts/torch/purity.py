"""Purity of host nodes: whether they do nothing but compute their result."""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch
from torch import fx

from irtool.hosts.torch.channel_select import ChannelSelect
from irtool.hosts.torch.modules import submodule
from irtool.hosts.torch.operators import names_a_write
from irtool.hosts.torch.tracing.recording.hooks import hooked
from irtool.hosts.torch.tracing.recording.proxies import AUGMENTED

_WRITE = frozenset({operator.setitem, operator.delitem, operator.iconcat, *AUGMENTED})


def is_pure(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node only computes its result in eval mode. What writes into its inputs, or cannot be judged, does more."""
    if node.op in ("placeholder", "output"):
        return False
    return node.op == "get_attr" or _RULES[node.op](module, node)


def writes(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a call is known to write into its first argument or `out`: `x.add_(y)`, `x += y`, `relu(x, inplace=True)`."""
    if node.op == "call_module":
        return bool(getattr(submodule(module, str(node.target)), "inplace", False))
    if isinstance(node.target, torch._ops.OpOverload):
        return bool(node.target._schema.is_mutable)
    name = str(getattr(node.target, "__name__", node.target))
    return node.target in _WRITE or names_a_write(name) or (node.op == "call_function" and _in_place(node))


def _pure_module(module: fx.GraphModule, node: fx.Node) -> bool:
    """Modules of torch.nn; those of users may do anything."""
    target = submodule(module, str(node.target))
    known = isinstance(target, ChannelSelect) or type(target).__module__.startswith("torch.nn.modules.")
    return known and not getattr(target, "inplace", False) and not hooked(target)


def _pure_function(module: fx.GraphModule, node: fx.Node) -> bool:
    """Functions of torch and of `operator` that write nothing."""
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        return not target._schema.is_mutable and not node.is_impure()
    place = getattr(target, "__module__", None) or ""
    known = (
        place in ("_operator", "operator", "math", "builtins", "torch._C._nn")
        or place == "torch"
        or place.startswith(("torch.functional", "torch.nn."))
    )
    known = known or getattr(torch, getattr(target, "__name__", ""), None) is target
    return known and target not in _WRITE and not names_a_write(target.__name__) and not _in_place(node) and not node.is_impure()


def _in_place(node: fx.Node) -> bool:
    """Whether a function was asked to write its result over its input, by position or by name."""
    if node.kwargs.get("inplace") or node.kwargs.get("out") is not None:
        return True
    code = getattr(node.target, "__code__", None)
    if code is None or "inplace" not in code.co_varnames:
        return False  # built-in functions have no signature, and say it by name alone
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return bool(bound.arguments.get("inplace"))


def _pure_method(module: fx.GraphModule, node: fx.Node) -> bool:
    """torch's methods that write end in an underscore."""
    return not names_a_write(str(node.target))


_RULES = {"call_module": _pure_module, "call_function": _pure_function, "call_method": _pure_method}
