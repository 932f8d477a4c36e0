"""Whether two stretches of nodes compute the same: by running both on random numbers.

An exporter writes one operator as several (a Swish as Sigmoid and Mul), or drops one that does nothing (a Dropout). No list of such
rewrites is kept here: the nodes say themselves what they do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from irtool.analysis.diff.matching import consumers
from irtool.ir.graph import Graph, Node, Value

LARGEST = 24
"""Longer stretches are not run."""
ENTRIES = 2**23
"""Nor are stretches with more numbers than this in their values."""
TOLERANCE = 1e-4
"""Tolerance relative to the largest number: float32, other orders of summation."""

Side = tuple[Graph, Sequence[Node]]


@dataclass(slots=True)
class Known:
    """The correspondence of two graphs: of nodes, and of the values between them.

    Attributes:
        nodes: partners, from the first graph to the second.
        values: values of the first graph that are values of the second.
    """

    nodes: Mapping[Node, Node]
    values: dict[Value, Value]

    @classmethod
    def of(cls, pairs: Mapping[Node, Node]) -> Known:
        """Partners give the same values."""
        return cls(pairs, {v: w for x, y in pairs.items() for v, w in zip(x.outputs, y.outputs, strict=False)})

    def back(self) -> Known:
        """From the second graph to the first."""
        return Known({y: x for x, y in self.nodes.items()}, {w: v for v, w in self.values.items()})


def same_function(a: Side, b: Side, known: Known) -> list[tuple[Value, Value]]:
    """The values that both stretches give to the nodes below, if all of them are equal; nothing otherwise.

    Args:
        a, b: graphs with some of their nodes, in order. Either may be empty: then the other must pass its input through.
        known: partners around them.
    """
    if not all(_runs(*side) for side in (a, b)):
        return []
    fed = _fed(a[1], b[1], known)
    ends = _ends(a[1], b[1], known)
    if not fed or not ends:
        return []
    generator = torch.Generator().manual_seed(0)
    start: tuple[dict[Value, Tensor], dict[Value, Tensor]] = ({}, {})
    for x, y in fed:
        if x.shape != y.shape or x.dtype != y.dtype or x.shape is None:
            return []
        start[0][x] = _random(x, generator)
        start[1][y] = start[0][x].clone()
    try:
        with torch.no_grad():
            found = [_run(*side, values) for side, values in zip((a, b), start, strict=True)]
    except Exception:  # whatever an operator raises on numbers that it does not take: then there is no telling
        return []
    return ends if all(x in found[0] and y in found[1] and _close(found[0][x], found[1][y]) for x, y in ends) else []


def _runs(graph: Graph, nodes: Sequence[Node]) -> bool:
    """Whether the nodes may be run: they are few, small, known, and change nothing."""
    if len(nodes) > LARGEST or any(node.op in ("Opaque", "Input", "Output", "Constant") for node in nodes):
        return False
    module = getattr(graph, "module", None)
    hosts = [node.host for node in nodes if getattr(node.host, "op", None) == "call_module"]
    if module is not None and any(module.get_submodule(str(host.target)).training for host in hosts):
        return False
    return sum(prod(value.shape or ()) for node in nodes for value in (*node.inputs, *node.outputs)) <= ENTRIES


def _fed(xs: Sequence[Node], ys: Sequence[Node], known: Known) -> list[tuple[Value, Value]]:
    """The values that come in, as both graphs have them; nothing if one side reads what the other does not know."""
    found: dict[Value, Value] = {}
    for nodes, forward, values in ((xs, True, known.values), (ys, False, known.back().values if ys else {})):
        for value in (value for node in nodes for value in node.inputs if value.producer is not None and value.producer not in nodes):
            other = values.get(value)
            if other is None:
                return []
            found.update({value: other} if forward else {other: value})
    return list(found.items())


def _ends(xs: Sequence[Node], ys: Sequence[Node], known: Known) -> list[tuple[Value, Value]]:
    """The values that go out: what the nodes below read, in the order in which they read it."""
    inside = set(xs), set(ys)
    back = known.back().nodes if ys else {}
    below = {user: known.nodes.get(user) for node in xs for user in consumers(node) if user not in inside[0]}
    below.update({back[user]: user for node in ys for user in consumers(node) if user not in inside[1] and user in back})
    found = []
    for x, y in below.items():
        reads = [[value for value in node.inputs if value.producer is not None] if node is not None else [] for node in (x, y)]
        if len(reads[0]) != len(reads[1]):
            return []
        found += [(v, w) for v, w in zip(*reads, strict=True) if v.producer in inside[0] or w.producer in inside[1]]
    return found


def _run(graph: Graph, nodes: Iterable[Node], values: dict[Value, Tensor]) -> dict[Value, Tensor]:
    for node in nodes:
        held = {value: value.data for value in node.inputs if value.data is not None}
        # Copies, since an operator may write to its input.
        inputs = {value: values[value].clone() for value in node.inputs if value not in held}
        values.update(zip(node.outputs, graph.evaluate(node, {**held, **inputs}), strict=True))
    return values


def _random(value: Value, generator: torch.Generator) -> Tensor:
    if value.dtype is not None and value.dtype.is_floating_point:
        spread = 10 ** (2 * torch.rand(value.sizes, generator=generator) - 1)  # small and large, so that a clip at 6 is met too
        return (spread * torch.randn(value.sizes, generator=generator)).to(value.dtype)
    return torch.randint(0, 2, value.sizes, generator=generator).to(value.dtype)


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    return bool((a.double() - b.double()).abs().max() <= TOLERANCE * a.double().abs().max()) if a.numel() else True
