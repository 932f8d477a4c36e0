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
