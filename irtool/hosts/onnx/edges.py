"""Edges of an onnx-graphsurgeon graph, many at a time: its own lists compare nodes by all that they have to find one of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import onnx_graphsurgeon as gs

from irtool.hosts.onnx.files.subgraphs import all_nodes, bodies


def redirect(old: gs.Tensor, new: gs.Tensor, but: gs.Node | None = None) -> None:
    """Let every reader of one tensor, but for one node, read another one instead, bodies of control flow included; in time that grows
    like the readers.
    """
    readers = [reader for reader in old.outputs if reader is not but]
    left = [reader for reader in old.outputs if reader is but]
    if old is new or not readers:
        return
    for reader in {id(reader): reader for reader in readers}.values():
        for index, tensor in enumerate(reader.inputs):
            if tensor is old:
                list.__setitem__(reader.inputs, index, new)
    list.clear(old.outputs)
    list.extend(old.outputs, left)
    list.extend(new.outputs, readers)


def exchange(tensors: Any, old: gs.Tensor, new: gs.Tensor) -> None:
    """Put one tensor in another's place; graphsurgeon keeps both ends of the edge, entry by entry only."""
    for index, tensor in enumerate(tensors):
        if tensor is old:
            tensors[index] = new


def cleanup(host: gs.Graph) -> None:
    """Take out, in place, what no output needs: `gs.Graph.cleanup` in time that grows like the graph."""
    used = _used(host)
    unused = [node for node in host.nodes if id(node) not in used]
    gone = {id(node) for node in unused}
    for tensor in _once(tensor for node in unused for tensor in node.inputs):
        _keep(tensor.outputs, gone)
    for tensor in _once(tensor for node in unused for tensor in node.outputs):
        _keep(tensor.inputs, gone)
    for node in unused:
        list.clear(node.inputs)
        list.clear(node.outputs)
    host.cleanup()


def _keep(nodes: list[gs.Node], gone: set[int]) -> None:
    left = [node for node in nodes if id(node) not in gone]
    list.clear(nodes)
    list.extend(nodes, left)


def _once(tensors: Iterable[gs.Tensor]) -> Iterator[gs.Tensor]:
    yield from {id(tensor): tensor for tensor in tensors}.values()


def _used(host: gs.Graph) -> set[int]:
    """The identities of the nodes that an output needs."""
    outer = host.tensors()
    used: set[int] = set()
    seen: set[int] = set()
    waiting = list(host.outputs)
    while waiting:
        tensor = waiting.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        for node in tensor.inputs:
            if id(node) not in used:
                used.add(id(node))
                waiting += node.inputs
                waiting += (outer[name] for body in bodies(node) for name in _read_inside(body) if name in outer)
    return used


def _read_inside(body: gs.Graph) -> Iterator[str]:
    """All names that a body reads, its own among them."""
    yield from (tensor.name for inner in all_nodes(body) for tensor in inner.inputs)
    for graph in (body, *(inner for node in all_nodes(body) for inner in bodies(node))):
        yield from (tensor.name for tensor in graph.outputs)
