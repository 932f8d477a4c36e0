"""Results in classes of a library's or the user's own (dataclasses, named tuples), which no file holds: as dicts and tuples."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import fx

from irtool.hosts.torch.graph import FxGraph
from irtool.hosts.torch.modules import copy_module


def plain_results(graph: FxGraph) -> FxGraph:
    """A graph that returns a dict of the fields (those that are not None) for a dataclass, and a plain tuple for a named tuple.

    The graph itself where it makes no such object, or where something but the output reads one.
    """
    made = [node for node in graph.module.graph.nodes if _fields(node) is not None]
    if not made or any(user.op != "output" and user not in made for node in made for user in node.users):
        return graph
    module = copy_module(graph.module, lambda name, tensor: tensor)
    held: dict[fx.Node, Any] = {}

    def plain(arg: fx.Node) -> Any:
        return held.get(arg, arg)

    for node in list(module.graph.nodes):
        if (names := _fields(node)) is None:
            if node.op == "output":
                node.args = fx.node.map_arg(node.args, plain)
            continue
        args, kwargs = (fx.node.map_arg(part, plain) for part in (node.args, node.kwargs))
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if dataclasses.is_dataclass(node.target):
            held[node] = {name: given[name] for name in names if given.get(name) is not None}
        else:
            defaults = node.target._field_defaults
            held[node] = tuple(given[name] if name in given else defaults[name] for name in names)
    for node in reversed([node for node in module.graph.nodes if node in held]):
        module.graph.erase_node(node)
    module.recompile()
    return FxGraph(module, graph.example_inputs, tracer=graph.tracer, history=graph.history)


def _fields(node: fx.Node) -> tuple[str, ...] | None:
    """The fields of the object that a node makes, in order; None if it makes none."""
    kind: Any = node.target
    if node.op != "call_function" or not isinstance(kind, type):
        return None
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind))
    return tuple(kind._fields) if issubclass(kind, tuple) and hasattr(kind, "_fields") else None


def plain_nest(nest: Any) -> Any:
    """A nest of data with plain dicts and tuples in place of such objects."""
    if dataclasses.is_dataclass(nest) and not isinstance(nest, type):
        fields = nest if isinstance(nest, Mapping) else {field.name: getattr(nest, field.name) for field in dataclasses.fields(nest)}
        return {key: plain_nest(value) for key, value in fields.items() if value is not None}
    if isinstance(nest, tuple) and hasattr(nest, "_fields"):
        return tuple(map(plain_nest, nest))
    if type(nest) in (list, tuple):
        return type(nest)(map(plain_nest, nest))
    return {key: plain_nest(value) for key, value in nest.items()} if type(nest) is dict else nest
