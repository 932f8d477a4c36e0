"""Size of an .onnx file's graph, counted before any of it is made: a few kilobytes of functions can stand for billions of nodes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto

from irtool.errors import FileError

MOST_NODES = 100_000
"""Operators of a model once its functions are inlined; the largest published models have some ten thousand."""
MOST_INPUTS = 10_000
"""Inputs and outputs of one operator."""
MOST_NESTED = 32
"""Bodies of control flow within each other, and functions that call each other."""
MOST_INLINED = 1 << 28
"""Bytes that inlining functions may add to a model."""
MOST_DENSE = 1 << 27
"""Numbers that the sparse tensors of a model stand for."""
MOST_AROUND = 1 << 28
"""Bodies of control flow times the operators of the graph: each is read with the names of all that is around it."""
_REMEDY = "Do not trust this file; if it is yours, export it with fewer or smaller functions."


@dataclass(frozen=True)
class _Extent:
    """Operators, bodies within each other, functions within each other, bytes."""

    nodes: int = 0
    bodies: int = 0
    calls: int = 0
    bytes: int = 0


def check_extent(model: ModelProto, where: str) -> None:
    """Refuse a model that would be too large once its functions are inlined.

    Raises:
        FileError: too many operators, too many inputs of one, functions that call themselves, or too deep a nesting.
    """
    try:
        _Count(model, where).check()
    except RecursionError as error:
        raise FileError("its functions and bodies are nested too deep", where=where, remedy=_REMEDY) from error


class _Count:
    """One count: each function is counted once, however often it is called."""

    def __init__(self, model: ModelProto, where: str) -> None:
        self.model, self.where = model, where
        self.functions = {(_domain(f.domain), f.name, f.overload): f for f in model.functions}
        self.known: dict[int, _Extent] = {}
        self.open: set[int] = set()
        self.dense = sum(abs(math.prod(sparse.dims)) for sparse in model.graph.sparse_initializer)
        """Numbers that sparse tensors stand for."""
        self.held = 0
        """Bodies of control flow."""

    def check(self) -> None:
        for function in self.functions.values():
            self.function(function, 0)
        found = self.nodes(self.model.graph.node, 0)
        self.require(found.nodes, MOST_NODES, "operators, its functions inlined")
        self.require(self.dense, MOST_DENSE, "numbers in sparse tensors, written out")
        self.require(self.held * found.nodes, MOST_AROUND, "operators around bodies of control flow, once for each body")
        self.require(found.bodies, MOST_NESTED, "bodies of control flow within each other")
        if self.model.functions:
            self.require(found.bytes, MOST_INLINED, "bytes in calls of functions")

    def require(self, count: int, most: int, what: str) -> None:
        if count > most:
            told = f"{count:,}" if count < 10**15 else f"about 10^{len(str(count)) - 1}"
            raise FileError(f"{told} {what}: irtool reads at most {most:,}", where=self.where, remedy=_REMEDY)

    def nodes(self, nodes: Iterable[NodeProto], calls: int) -> _Extent:
        count = bodies = bytes_ = 0
        for node in nodes:
            self.require(len(node.input) + len(node.output), MOST_INPUTS, f"inputs and outputs of one {node.op_type}")
            count += 1
            function = self.functions.get((_domain(node.domain), node.op_type, node.overload))
            parts = [self.function(function, calls + 1)] if function is not None else []
            if node.attribute:
                parts += [self.body(body, calls) for body in bodies_of(node)]
                self.dense += sum(abs(math.prod(sparse.dims)) for sparse in _sparse_of(node))
            for part in parts:
                count, bytes_, bodies = count + part.nodes, bytes_ + part.bytes, max(bodies, part.bodies)
        return _Extent(count, bodies, 0, bytes_)

    def body(self, graph: GraphProto, calls: int) -> _Extent:
        self.dense += sum(abs(math.prod(sparse.dims)) for sparse in graph.sparse_initializer)
        self.held += 1
        found = self.nodes(graph.node, calls)
        return _Extent(found.nodes, found.bodies + 1, 0, found.bytes)

    def function(self, function: FunctionProto, calls: int) -> _Extent:
        key = id(function)
        if key in self.open:
            raise FileError(f"its function {function.name!r} calls itself", where=self.where, remedy=_REMEDY)
        self.require(calls, MOST_NESTED * 2, "functions that call each other")
        if key not in self.known:
            self.open.add(key)
            found = self.nodes(function.node, calls + 1)
            self.open.discard(key)
            self.known[key] = _Extent(found.nodes, found.bodies, 0, found.bytes + function.ByteSize())
        return self.known[key]


def bodies_of(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs that a node holds."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def names_read(node: NodeProto) -> Iterator[str]:
    """The names that a node reads, in its bodies too."""
    yield from node.input
    for body in bodies_of(node):
        for inner in body.node:
            yield from names_read(inner)
        yield from (value.name for value in body.output)


def _sparse_of(node: NodeProto) -> Iterator[SparseTensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("sparse_tensor"):
            yield attribute.sparse_tensor
        yield from attribute.sparse_tensors


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name
