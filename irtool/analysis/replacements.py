"""What took the place of what: the nodes without a partner, by the matched nodes around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from irtool.analysis.cost import held_by
from irtool.analysis.node_matching import consumers, data_inputs
from irtool.ir.graph import Graph, Node

LARGEST = 8
"""Longer stretches are removed and added: two unrelated nets are not one replacement of the other."""

Place = tuple[frozenset[Node], frozenset[Node]]
"""The matched nodes before and after a stretch, as the first graph has them."""


@dataclass(frozen=True, slots=True)
class Unmatched:
    """The nodes without a partner.

    Attributes:
        added, removed: those in no replacement, in the order of their graph.
        replaced: (nodes of the first graph, nodes of the second) that stand between the same neighbours.
        rewritten: nodes of the first graph that took over what a removed one did: their numbers had to change.
    """

    added: list[Node]
    removed: list[Node]
    replaced: list[tuple[list[Node], list[Node]]]
    rewritten: set[Node]


def find_replacements(a: Graph, b: Graph, pairs: Mapping[Node, Node]) -> Unmatched:
    """Sort the nodes without a partner into replacements, removed and added ones."""
    back = {y: x for x, y in pairs.items()}
    gone, new = {node for node in a.nodes if node not in pairs}, {node for node in b.nodes if node not in back}
    places: dict[Place, list[Node]] = {}
    for stretch in _stretches(b, new):
        places.setdefault(_place(stretch, back.__getitem__), stretch)
    replaced: list[tuple[list[Node], list[Node]]] = []
    rewritten: set[Node] = set()
    for stretch in _stretches(a, gone):
        other = places.pop(_place(stretch, lambda node: node), None)
        source = _folded_into(stretch, a, b, pairs) if other is None else None
        if source is not None:
            replaced.append(([source, *stretch], [pairs[source]]))
            rewritten.add(source)
            gone.difference_update(stretch)
        elif other is not None and max(len(stretch), len(other)) <= LARGEST:
            replaced.append((stretch, other))
            gone.difference_update(stretch)
            new.difference_update(other)
    return Unmatched([node for node in b.nodes if node in new], [node for node in a.nodes if node in gone], replaced, rewritten)


def _stretches(graph: Graph, free: set[Node]) -> list[list[Node]]:
    """The connected pieces of the nodes without a partner, each in the graph's order."""
    piece: dict[Node, Node] = {}
    for start in graph.nodes:
        waiting = [start] if start in free and start not in piece else []
        while waiting:
            node = waiting.pop()
            if node not in piece:
                piece[node] = start
                waiting += [other for other in (*(producer for _, producer, _ in data_inputs(node)), *consumers(node)) if other in free]
    found: dict[Node, list[Node]] = {}
    for node in graph.nodes:
        if node in piece:
            found.setdefault(piece[node], []).append(node)
    return list(found.values())


def _place(stretch: list[Node], partner: Callable[[Node], Node]) -> Place:
    inside = set(stretch)
    above = {producer for node in stretch for _, producer, _ in data_inputs(node)} - inside
    below = {user for node in stretch for user in consumers(node)} - inside
    return frozenset(map(partner, above)), frozenset(map(partner, below))


def _folded_into(stretch: list[Node], a: Graph, b: Graph, pairs: Mapping[Node, Node]) -> Node | None:
    """The node that a vanished batch norm was folded into: the one before it, if its numbers changed."""
    if len(stretch) != 1 or stretch[0].op != "BatchNormalization":
        return None
    source = stretch[0].input.producer
    if source is None or source.op not in ("Conv", "ConvTranspose", "Gemm") or source not in pairs:
        return None
    held = [[data for _, _, data in held_by(graph, node)] for graph, node in ((a, source), (b, pairs[source]))]
    unchanged = len(held[0]) == len(held[1]) and all(
        x.shape == y.shape and torch.equal(x, y.to(x.device)) for x, y in zip(*held, strict=True)
    )
    return None if unchanged else source
