"""Calls in one form: the operand first and by position, arguments by the names that torch's own documentation gives them."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from irtool.hosts.torch.operators import function_spec

_FIRST = {"split": "tensor", "where": ""}
"""Names of first arguments that are not `input`; `torch.where` begins with its condition."""
_ATTRIBUTES: dict[Any, tuple[Any, tuple[int, ...]]] = {
    "real": (torch.real, ()),
    "imag": (torch.imag, ()),
    "mT": (torch.transpose, (-2, -1)),
}
"""Attributes of tensors that are operators, and their further arguments."""
_ALIASES = {"axis": "dim", "keepdims": "keepdim", "x": "input", "a": "input", "x1": "input", "x2": "other"}
"""NumPy's names, which torch takes, too."""
_UNBIASED = frozenset({"var", "std", "var_mean", "std_mean"})
"""`x.var(False)` is short for `x.var(unbiased=False)`: no axis."""


def normalize_calls(graph: fx.Graph) -> bool:
    """Rewrite calls in the form that everything else expects. True if one changed."""
    changed = False
    for node in graph.nodes:
        if node.target is getattr and node.args[1] in _ATTRIBUTES:
            node.target, rest = _ATTRIBUTES[node.args[1]]
            node.args, changed = (node.args[0], *rest), True
        if node.op in ("call_function", "call_method") and (node.kwargs or len(node.args) == 2):
            form = _form(node)
            if form != (node.args, node.kwargs):
                node.args, node.kwargs = form
                changed = True
    return changed


def _form(node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args: tuple[Any, ...] = node.args
    kwargs = dict(node.kwargs)
    if kwargs and not _is_python(node.target) and function_spec(node.target) is not None:
        kwargs = {_ALIASES.get(name, name): value for name, value in kwargs.items()}
    second = args[1] if len(args) == 2 else None
    if isinstance(second, bool) and str(getattr(node.target, "__name__", node.target)).split(".")[0] in _UNBIASED:
        args, kwargs = args[:1], {**kwargs, "unbiased": second}
    if kwargs and not args and (first := _first(node.target)) in kwargs:
        args = (kwargs.pop(first),)
    return args, kwargs


def _is_python(target: Any) -> bool:
    """Whether a function is written in Python, whose arguments have one name each."""
    return hasattr(target, "__code__")


def _first(target: Any) -> str:
    """The name of a function's first argument, if the function is one that irtool knows."""
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.arguments[0].name if target._schema.arguments else ""
    return _FIRST.get(target.__name__, "input") if not isinstance(target, str) and function_spec(target) is not None else ""
