"""Element types that a program fixes (`x.float()`, `dtype=torch.float32`, `torch.eye(3)`), for a copy that computes in a wider one; and their rounding."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from irtool.hosts.torch.modules import submodule
from irtool.hosts.torch.operators import module_spec


def rounding(dtype: torch.dtype) -> float:
    """Return the largest relative difference that rounding explains in a type narrower than float32."""
    return 64 * torch.finfo(dtype).eps


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
    whole = {str(node.target): submodule(module, str(node.target)) for node in module.graph.nodes if node.op == "call_module"}
    for held in {id(held): held for held in whole.values() if not type(held).__module__.startswith("torch.")}.values():
        if module_spec(held) is None and not isinstance(held, fx.GraphModule):
            around = _Around(dtype)
            held.register_forward_pre_hook(around.enter)
            held.register_forward_hook(around.leave, always_call=True)
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


class _Around:
    """Hooks of a module that stays whole: what its code names as a narrower type is the wider one while it runs."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype, self._entered = dtype, list[_Wider]()

    def enter(self, module: nn.Module, args: Any) -> None:
        self._entered.append(_Wider(self._dtype))
        self._entered[-1].__enter__()

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._entered.pop().__exit__(None, None, None)


class _Wider(TorchFunctionMode):
    """Reads every narrower floating type as the wider one: those that calls name, and those that they make of no float."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _CASTS:
            return args[0].to(self._dtype)
        args, kwargs = pytree.tree_map(self._wide, (tuple(args), kwargs or {}))
        return pytree.tree_map(self._wide, func(*args, **kwargs))

    def _wide(self, leaf: Any) -> Any:
        kind = leaf.dtype if type(leaf) is torch.Tensor else leaf
        if not isinstance(kind, torch.dtype) or not kind.is_floating_point or kind.itemsize >= self._dtype.itemsize:
            return leaf
        return self._dtype if leaf is kind else leaf.to(self._dtype)
