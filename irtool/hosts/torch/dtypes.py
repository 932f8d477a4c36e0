"""Element types that a program fixes (`x.float()`, `dtype=torch.float32`, `torch.eye(3)`), for a copy that computes in a wider one."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any

import torch
from torch import fx

_CASTS = frozenset({"float", "half", "bfloat16"})


def widen(module: fx.GraphModule, dtype: torch.dtype, makers: Set[str] = frozenset()) -> None:
    """Replace every floating type narrower than `dtype` that the program names, in place.

    `makers` name the nodes that make floats of no float (`torch.eye(3)`, a quotient of whole numbers), in torch's default
    type: what they make is converted.
    """

    def wide(leaf: Any) -> Any:
        narrow = isinstance(leaf, torch.dtype) and leaf.is_floating_point and leaf.itemsize < dtype.itemsize
        return dtype if narrow else leaf

    for program in module.modules():  # torch.export puts regions into programs of their own
        if isinstance(program, fx.GraphModule):
            changed = [_widen_node(node, wide, dtype) for node in program.graph.nodes]
            if any(changed):
                program.recompile()
    for node in [node for node in module.graph.nodes if node.name in makers]:
        with module.graph.inserting_after(node):
            converted = module.graph.call_method("to", (node, dtype))
        node.replace_all_uses_with(converted, delete_user_cb=lambda user, own=converted: user is not own)
    if makers:
        module.recompile()


def _widen_node(node: fx.Node, wide: Callable[[Any], Any], dtype: torch.dtype) -> bool:
    """True if the node's arguments changed."""
    if node.op == "call_method" and node.target in _CASTS:
        node.target, node.args = "to", (node.args[0], dtype)
        return True
    args, kwargs = fx.node.map_aggregate(node.args, wide), fx.node.map_aggregate(node.kwargs, wide)
    if not node.op.startswith("call") or (args, kwargs) == (node.args, dict(node.kwargs)):
        return False
    node.args, node.kwargs = args, kwargs
    return True
