"""Modules as data: copies that share nothing, tensors in nests, attributes by path, one call."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import fx, nn
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.utils import _pytree as pytree


def map_tensors(structure: Any, function: Callable[[torch.Tensor], Any]) -> Any:
    """Apply `function` to every tensor in a nest of tuples, lists, dicts and dataclasses known to torch's pytree."""
    if isinstance(structure, torch.Tensor):
        return function(structure)
    return pytree.tree_map(lambda leaf: function(leaf) if isinstance(leaf, torch.Tensor) else leaf, structure)


def look_into(example: Any) -> None:
    """Let torch's pytree see the fields of a dataclass that nobody registered with it, as it sees those of a tuple."""
    if dataclasses.is_dataclass(example) and not isinstance(example, type) and type(example) not in pytree.SUPPORTED_NODES:
        pytree.register_dataclass(type(example))


def copy_module(module: nn.Module, data: Callable[[str, torch.Tensor], torch.Tensor]) -> Any:
    """A copy of `module` whose parameters and buffers hold `data(name, old)`; sharing between names is kept.

    Only the tensors that `data` makes are allocated, so a copy on the meta device costs no memory for weights. The tree
    is copied by hand: `copy.deepcopy` spends most of its time on empty hook dictionaries. The code of a traced program is
    generated when it is first run or read (see `lazy`).
    """
    memo: dict[int, Any] = {}
    for name, parameter in module.named_parameters():
        memo[id(parameter)] = nn.Parameter(data(name, parameter.detach()), requires_grad=parameter.requires_grad)
    for name, buffer in module.named_buffers():
        memo[id(buffer)] = data(name, buffer)
    if isinstance(module, fx.GraphModule):
        new = lazy(nn.Module(), fx.Graph(), type(module).__name__)
        _copy_tree(module, memo, new)
        for name, held in module.__dict__.items():  # constants that are neither parameters nor buffers
            if isinstance(held, torch.Tensor):
                new.__dict__[name] = data(name, held)
        new.graph = copy.deepcopy(module.graph, memo)
        new.meta = dict(module.meta)
        new.training = module.training
        return new
    return _copy_tree(module, memo)


def lazy(root: nn.Module, graph: fx.Graph, name: str) -> fx.GraphModule:
    """A traced program whose Python code is generated when it is first run or read.

    Most programs here are read as graphs only, and generating code takes longer than all that irtool does to them. The
    class is torch's own, which `torch.compile` and `torch.export` know; `compiled` makes a plain module of it.
    """
    return _LazyGraphModule(root, graph, name)


def compiled(module: fx.GraphModule) -> fx.GraphModule:
    """The same object, its code generated, and no longer lazy: what users get, and `torch.jit.script` takes."""
    if isinstance(module, _LazyGraphModule):
        plain: type[fx.GraphModule] = type(
            fx.GraphModule.__new__(fx.GraphModule)
        )  # fx makes a class for each instance, to hang `forward` on
        plain.__name__ = type(module).__name__
        cast(Any, module).__class__ = plain
        module.recompile()
    return module


_SHARED = frozenset({int, float, str, bool, bytes, tuple, type(None), type, torch.dtype, torch.device})
_TREE = frozenset({"_parameters", "_buffers", "_modules"})


def _copy_tree(module: nn.Module, memo: dict[int, Any], new: nn.Module | None = None) -> nn.Module:
    """A module and all below it; the same module in two places stays one."""
    if id(module) in memo:
        found: nn.Module = memo[id(module)]
        return found
    made = module.__class__.__new__(module.__class__) if new is None else new
    memo[id(module)] = made
    if new is None:
        made.__dict__.update(module.__dict__)
        for key, value in module.__dict__.items():
            if type(value) in _SHARED or key in _TREE:
                continue
            made.__dict__[key] = type(value)() if isinstance(value, dict | set | list) and not value else copy.deepcopy(value, memo)
    if new is None and isinstance(module, fx.GraphModule):  # a region of an exported program: its class is made for it alone
        cast(Any, type(made)).forward = type(module).forward
    for slot in ("_parameters", "_buffers"):
        made.__dict__[slot] = {key: None if held is None else memo[id(held)] for key, held in module.__dict__[slot].items()}
    made.__dict__["_non_persistent_buffers_set"] = set(module._non_persistent_buffers_set)
    made.__dict__["_modules"] = {key: None if child is None else _copy_tree(child, memo) for key, child in module._modules.items()}
    return made


def empty_like(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """`meta` in the form that `copy_module` takes."""
    return meta(tensor)


def call(module: nn.Module, node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Execute one host node on given arguments."""
    if node.op == "call_module":
        return module.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def modules_by_path(module: nn.Module) -> dict[str, nn.Module]:
    """`module` and all below it under every path, parents first: `named_modules(remove_duplicate=False)`, without generators in generators."""
    found: dict[str, nn.Module] = {}
    stack = [("", module)]
    while stack:
        path, owner = stack.pop()
        found[path] = owner
        prefix = f"{path}." if path else ""
        stack += [(prefix + name, child) for name, child in reversed(owner._modules.items()) if child is not None]
    return found


def attribute(module: nn.Module, path: str) -> Any:
    """The object at a dotted path below `module`."""
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part)
    return found


def set_attribute(module: nn.Module, path: str, value: Any) -> None:
    """Set the object at a dotted path below `module`."""
    prefix, _, name = path.rpartition(".")
    setattr(module.get_submodule(prefix), name, value)


def meta(tensor: torch.Tensor) -> torch.Tensor:
    """An empty tensor of the same shape and type on the meta device."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
