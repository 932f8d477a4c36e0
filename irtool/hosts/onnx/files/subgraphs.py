"""Bodies of control flow (If, Loop, Scan): what they read of the graphs around them."""

from __future__ import annotations

from collections.abc import Iterator, Set

import onnx_graphsurgeon as gs


def bodies(node: gs.Node) -> list[gs.Graph]:
    """The graphs that a node holds."""
    return [value for value in node.attrs.values() if isinstance(value, gs.Graph)]


def captured(node: gs.Node, outside: Set[str]) -> Iterator[gs.Tensor]:
    """The tensors of the graph around a node that its bodies read, at any depth.

    graphsurgeon takes every constant for one of the body's own; the name tells, which no body may give anew.

    Args:
        node: a host node.
        outside: the names of the tensors of the graph around it.
    """
    for body in bodies(node):
        for inner in body.nodes:
            yield from (tensor for tensor in inner.inputs if tensor.name in outside)
            yield from captured(inner, outside)
        yield from (tensor for tensor in body.outputs if tensor.name in outside)


def all_nodes(graph: gs.Graph) -> Iterator[gs.Node]:
    """The nodes of a graph and of the bodies in it."""
    for node in graph.nodes:
        yield node
        for body in bodies(node):
            yield from all_nodes(body)


def has_inside(node: gs.Node, operators: Set[tuple[str, str]]) -> bool:
    """Whether one of some operators (domain, name) is in a node's bodies."""
    return any((inner.domain or "", inner.op) in operators for body in bodies(node) for inner in all_nodes(body))
