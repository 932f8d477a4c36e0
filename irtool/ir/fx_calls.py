"""Calls in one form: the operand first and by position, and a bool that could be taken for an axis by its name."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from irtool.ir.fx_targets import function_spec

_FIRST = {"split": "tensor", "where": ""}
"""What a function calls its first argument, where that is not `input`; `torch.where` begins with its condition."""
_UNBIASED = frozenset({"var", "std", "var_mean", "std_mean"})
"""`x.var(False)` is short for `x.var(unbiased=False)`."""


def settle_calls(graph: fx.Graph) -> bool:
    """Rewrite calls in the form that everything else expects. True if one changed."""
    changed = False
    for node in graph.nodes:
        if node.op == "call_function" and node.kwargs and not node.args:
            changed |= _by_position(node)
        if node.op in ("call_function", "call_method") and len(node.args) == 2 and isinstance(node.args[1], bool):
            if getattr(node.target, "__name__", node.target) in _UNBIASED:
                node.args, node.kwargs = node.args[:1], {**node.kwargs, "unbiased": node.args[1]}
                changed = True
    return changed


def _by_position(node: fx.Node) -> bool:
    """`torch.mean(input=x, dim=1)` as `torch.mean(x, dim=1)`."""
    name = _first(node.target)
    if name not in node.kwargs:
        return False
    kwargs = dict(node.kwargs)
    node.args, node.kwargs = (kwargs.pop(name),), kwargs
    return True


def _first(target: Any) -> str:
    """The name of a function's first argument, if the function is one that irtool knows."""
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.arguments[0].name if target._schema.arguments else ""
    return _FIRST.get(target.__name__, "input") if function_spec(target) is not None else ""
