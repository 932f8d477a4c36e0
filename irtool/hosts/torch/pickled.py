"""A traced program as flat records, for `pickle` and `copy`: torch's own would follow the links from node to node, or trace it again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from irtool.hosts.torch.modules import add_node, compiled, lazy

_KEPT = ("nn_module_stack", "owner", "whole", "stack_trace")
"""Records on a node that irtool reads."""


_HELD = ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules", "training")


@dataclass(frozen=True)
class _At:
    """A node among the arguments of another, by its number in the program."""

    number: int


@dataclass(frozen=True)
class _Overload:
    """An operator of torch's dispatcher, which pickles by no name of its own: `aten.add.Tensor`."""

    name: str


Row = tuple[str, Any, Any, Any, str, Mapping[str, Any]]


def flat(module: fx.GraphModule) -> tuple[nn.Module, str, list[Row], Any]:
    """Take a program apart: its modules and tensors, its name, a record for each node, how it is called."""
    number = {node: index for index, node in enumerate(module.graph.nodes)}

    def place(node: fx.Node) -> Any:  # which fx takes for an argument of its own kinds
        return _At(number[node])

    def without(arguments: Any) -> Any:
        return fx.map_arg(arguments, place)

    rows: list[Row] = []
    for node in module.graph.nodes:
        target = _Overload(str(node.target)) if isinstance(node.target, torch._ops.OpOverload) else node.target
        kept = {name: node.meta[name] for name in _KEPT if name in node.meta}
        rows.append((node.op, target, without(node.args), without(node.kwargs), node.name, kept))
    tree = nn.Module()
    named = {str(node.target).partition(".")[0] for node in module.graph.nodes if node.op in ("call_module", "get_attr")}
    kept_names = {*_HELD, *named}  # what else hangs on a traced module stands for its program (hooks of torch.export's), and is no data
    tree.__dict__.update({name: value for name, value in module.__dict__.items() if name in kept_names})
    tree._modules = {name: child for name, child in module._modules.items() if name in named}
    return tree, type(module).__name__, rows, copy.deepcopy(module.graph._codegen)


def rebuilt(tree: nn.Module, name: str, rows: list[Row], codegen: Any) -> fx.GraphModule:
    """Put a program together again; see `flat`."""
    graph, made = fx.Graph(), list[fx.Node]()

    def place(arguments: Any) -> Any:
        return pytree.tree_map(lambda leaf: made[leaf.number] if isinstance(leaf, _At) else leaf, arguments)

    for op, target, args, kwargs, label, kept in rows:
        found: Callable[..., Any] | str = attrgetter(target.name)(torch.ops) if isinstance(target, _Overload) else target
        node = add_node(graph, op, found, place(args), place(kwargs), label)
        node.meta.update(kept)
        made.append(node)
    graph.set_codegen(codegen)
    return lazy(tree, graph, name)


def picklable(module: fx.GraphModule) -> fx.GraphModule:
    """Make a program's module one that `pickle` and `torch.save` take as it is. Returns the same object.

    torch would write its code as text and trace that again when it is read: a program that makes tensors of sizes, or asks whether an
    argument is None, does not come back.
    """
    kind: Any = type(module)  # fx makes a class for each instance
    kind.__reduce__, kind.__deepcopy__ = _reduced, _copied
    return module


def _copied(module: fx.GraphModule, memo: dict[int, Any]) -> fx.GraphModule:
    made: fx.GraphModule = fx.GraphModule.__deepcopy__(module, memo)
    return picklable(made)


def _reduced(module: fx.GraphModule) -> Any:
    own = {name: value for name, value in module.__dict__.items() if name not in _OF_TORCH}
    return _module_again, (flat(module), own)


def _module_again(program: tuple[nn.Module, str, list[Row], Any], own: Mapping[str, Any]) -> fx.GraphModule:
    """A module from what `_reduced` gave."""
    module = picklable(compiled(rebuilt(*program)))
    module.__dict__.update(own)
    return module


_OF_TORCH = frozenset({
    *vars(compiled(fx.GraphModule(nn.Module(), fx.Graph()))), *_HELD, "shape_env", "range_constraints", "validate_inputs", "_in_spec", "_out_spec",
})  # fmt: skip
"""Attributes of a traced module that come with its program; what else there is, its user has put there."""
