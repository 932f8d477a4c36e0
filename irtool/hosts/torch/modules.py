"""Modules as data: copies that share nothing, tensors in nests, attributes by path, one call."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import fx, nn
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.utils import _pytree as pytree


def copy_module(module: nn.Module, data: Callable[[str, torch.Tensor], torch.Tensor]) -> Any:
    """A copy of `module` whose parameters and buffers hold `data(name, old)`; sharing between names is kept.

    Only the tensors that `data` makes are allocated, so a copy on the meta device costs no memory for weights. The tree
    is copied by hand: `copy.deepcopy` spends most of its time on empty hook dictionaries. The code of a traced program is
    generated when it is first run or read (see `lazy`).
    """
    memo = _copied_tensors(module, data)
    if isinstance(module, fx.GraphModule):
        new = lazy(nn.Module(), fx.Graph(), type(module).__name__)
        _copy_tree(module, memo, new)
        new.__dict__.update({name: memo[id(held)] for name, held in module.__dict__.items() if isinstance(held, torch.Tensor)})
        new.graph = copy_graph(module.graph)
        new.meta = dict(module.meta)
        new.training = module.training
        return new
    return _copy_tree(module, memo)


def _copied_tensors(module: nn.Module, data: Callable[[str, torch.Tensor], torch.Tensor]) -> dict[int, Any]:
    """By the identity of each tensor, constants that are neither parameter nor buffer included: what takes its place in a copy.

    Shared ones go by their first name.
    """
    made: dict[int, Any] = {}
    for path, owner in modules_by_path(module).items():
        prefix = f"{path}." if path else ""
        for name, held in owner._parameters.items():
            if held is not None and id(held) not in made:
                made[id(held)] = nn.Parameter(data(prefix + name, held.detach()), held.requires_grad)
        plain = [(name, held) for name, held in owner.__dict__.items() if isinstance(held, torch.Tensor)]
        for name, tensor in (*owner._buffers.items(), *plain) if plain else owner._buffers.items():
            if tensor is not None and id(tensor) not in made:
                made[id(tensor)] = data(prefix + name, tensor if tensor.is_leaf else tensor.detach())
    return made


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """A copy of a traced program, names and records included."""
    new = fx.Graph(tracer_cls=graph._tracer_cls)
    made: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        copied = made[node] = add_node(
            new,
            node.op,
            node.target,
            fx.map_arg(node.args, made.__getitem__),
            fx.map_arg(node.kwargs, made.__getitem__),
            node.name,
            node.type,
        )
        copied.meta.update(node.meta)
    new.set_codegen(copy.deepcopy(graph._codegen))
    return new


def add_node(
    graph: fx.Graph, op: str, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str | None = None, kind: Any = None
) -> fx.Node:
    """`Graph.create_node`, whose look through all arguments for symbolic numbers takes longer than the rest: there are none here."""
    node = graph.create_node(op, target, (), {}, name, kind)
    node.args = args
    if kwargs:
        node.kwargs = dict(kwargs)
    return node


def lazy(root: nn.Module, graph: fx.Graph, name: str) -> fx.GraphModule:
    """A traced program whose Python code is generated when it is first run or read.

    Most programs here are read as graphs only, and generating code takes longer than all that irtool does to them. The
    class is torch's own, which `torch.compile` and `torch.export` know; `compiled` makes a plain module of it. The modules and
    tensors that the program names are those of `root`; what holds them is made anew.
    """
    made = _LazyGraphModule(nn.Module(), fx.Graph(tracer_cls=graph._tracer_cls), name)
    made.training = getattr(root.training, "plain", root.training)  # while it is traced, a flag that notes who asks
    owners: dict[str, tuple[nn.Module, nn.Module]] = {"": (root, made)}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            _hang(owners, str(node.target))
    made.graph = graph
    return made


def _hang(owners: dict[str, tuple[nn.Module, nn.Module]], path: str) -> None:
    """Put the object at a path below one module below another, under the same path. `owners`: both modules of each path so far."""
    prefix, _, name = path.rpartition(".")
    if prefix not in owners:
        owners[prefix] = _owners(owners, prefix)
    source, made = owners[prefix]
    if source is made:  # it came with a module around it
        return
    held = getattr(source, name)
    if isinstance(held, nn.Module):
        made._modules[name] = held
    elif isinstance(held, torch.Tensor) and not isinstance(held, nn.Parameter):
        made.register_buffer(name, held, persistent=name not in source._non_persistent_buffers_set)
    else:
        setattr(made, name, held)


def _owners(owners: dict[str, tuple[nn.Module, nn.Module]], path: str) -> tuple[nn.Module, nn.Module]:
    """The module at a path, and the one that holds its parts in the copy: itself, if it is there as a whole."""
    if path not in owners:
        prefix, _, name = path.rpartition(".")
        source, made = _owners(owners, prefix)
        child = getattr(source, name)
        if source is not made and name not in made._modules:
            made._modules[name] = nn.Module()
        owners[path] = (child, getattr(made, name))
    return owners[path]


def compiled(module: fx.GraphModule) -> fx.GraphModule:
    """Generate a program's code, so that it is no longer lazy: users get it so, and `torch.jit.script` takes it. Returns the same object."""
    if isinstance(module, _LazyGraphModule):
        plain: type[fx.GraphModule] = type(
            fx.GraphModule.__new__(fx.GraphModule)
        )  # fx makes a class for each instance, to hang `forward` on
        plain.__name__ = type(module).__name__
        for name in ("__reduce__", "__deepcopy__"):
            setattr(plain, name, getattr(type(module), name))
        cast(Any, module).__class__ = plain
        module.recompile()
    return module


_SHARED = frozenset({int, float, str, bool, bytes, tuple, type(None), type, torch.dtype, torch.device})
_CONTAINERS = frozenset({OrderedDict, dict, list, set})
_TREE = frozenset({"_parameters", "_buffers", "_modules"})
HOOKS = frozenset(key for key in vars(nn.Module()) if "_hooks" in key)
"""Attributes in which a module keeps its hooks. These belong to others, and are never copied with it."""


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
            kind = type(value)
            if kind in _SHARED or key in _TREE:
                continue
            if isinstance(value, torch.Tensor):
                made.__dict__[key] = memo[id(value)]
            elif key in HOOKS or (kind in _CONTAINERS and not value):
                made.__dict__[key] = kind(value) if value else kind()
            else:
                made.__dict__[key] = _copied(value, memo)
    if new is None and isinstance(module, fx.GraphModule):  # a region of an exported program: its class is made for it alone
        cast(Any, type(made)).forward = type(module).forward
    for slot in ("_parameters", "_buffers"):
        made.__dict__[slot] = {key: None if held is None else memo[id(held)] for key, held in module.__dict__[slot].items()}
    made.__dict__["_non_persistent_buffers_set"] = set(module._non_persistent_buffers_set)
    made.__dict__["_modules"] = {key: None if child is None else _copy_tree(child, memo) for key, child in module._modules.items()}
    return made


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """A copy of an attribute. Results of a computation, which torch does not copy, are copied without their past."""
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, torch.Tensor) and not leaf.is_leaf:
            memo.setdefault(id(leaf), leaf.detach().clone())
    return copy.deepcopy(value, memo)


def empty_like(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """`meta` in the form that `copy_module` takes."""
    return meta(tensor)


def call(module: nn.Module, node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Execute one host node on given arguments."""
    if node.op == "call_module":
        return submodule(module, str(node.target))(*args, **kwargs)
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


def submodule(module: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path, as `get_submodule` finds it, without that one's questions at every step."""
    found: Any = module
    for part in path.split(".") if path else ():
        found = found._modules[part]
    return cast(nn.Module, found)


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


def kept_whole(module: nn.Module) -> list[str]:
    """Paths of the parts that a traced program calls as they are: the user's own code, which no tracer could follow."""
    programs = [part for part in module.modules() if isinstance(part, fx.GraphModule)]
    called = {str(node.target): program for program in programs for node in program.graph.find_nodes(op="call_module")}
    own = {path: type(program.get_submodule(path)).__module__.partition(".")[0] for path, program in called.items()}
    return [path for path, package in own.items() if package not in ("torch", "torchvision", "irtool")]
