"""Operators of a torch program that may write over what they read. An ONNX program has none."""

from __future__ import annotations

from torch import fx

from irtool.hosts.torch.graph import FxGraph
from irtool.hosts.torch.purity import is_pure
from irtool.ir.graph import Graph, Node, Value


def writers(graph: Graph, after: Node | None = None, before: Node | None = None) -> list[fx.Node]:
    """They, in order: those between two nodes, or all. The host is asked: an assignment to a part has no node in the view."""
    if not isinstance(graph, FxGraph):
        return []
    hosts = list(graph.module.graph.nodes)
    first = 0 if after is None else hosts.index(after.host) + 1
    last = len(hosts) if before is None else hosts.index(before.host)
    return [host for host in hosts[first:last] if host.op not in ("placeholder", "output") and not is_pure(graph.module, host)]


def overwritten(graph: Graph) -> list[Value]:
    """The values that such operators read, and so may have changed."""
    found = [graph.value_of(used) for host in writers(graph) for used in host.all_input_nodes] if isinstance(graph, FxGraph) else []
    return [value for value in found if isinstance(value, Value)]
