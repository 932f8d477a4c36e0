"""What took the place of what: the nodes without a partner, by the matched nodes around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

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
        rewritten: nodes of the first graph that took over what a removed one did: that explains their new numbers.
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
        source = _folded_into(stretch, pairs) if other is None else None
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


def _folded_into(stretch: list[Node], pairs: Mapping[Node, Node]) -> Node | None:
    """The node that a vanished batch norm was folded into: the one before it, if its partner's numbers say so.

    Where channels went at the same time the numbers cannot be held against each other; a bias must do then.
    """
    norm = stretch[0]
    source = norm.input.producer if len(stretch) == 1 and norm.op == "BatchNormalization" else None
    partner = pairs.get(source) if source is not None else None
    if source is None or partner is None or source.op not in ("Conv", "ConvTranspose", "Gemm"):
        return None
    if partner.get("bias") is None or any(user.op == "BatchNormalization" for user in consumers(partner)):
        return None
    return source if _is_fold(source, norm, partner) else None


def _is_fold(source: Node, norm: Node, partner: Node) -> bool:
    """Whether b' = (b - mean) * gamma / sqrt(var + eps) + beta, and w' is scaled likewise, to float32's precision."""
    old, new = source.operands["weight"].data, partner.operands["weight"].data
    mean, variance = (held.data if (held := norm.get(role)) is not None else None for role in ("running_mean", "running_var"))
    if old is None or new is None or mean is None or variance is None:
        return False
    if old.shape != new.shape:
        return True
    gamma, beta, bias, bias_now = (
        _data(node, role) for node, role in ((norm, "weight"), (norm, "bias"), (source, "bias"), (partner, "bias"))
    )
    scale = (1.0 if gamma is None else gamma.double()) / (variance.double() + float(norm.attrs.get("eps", 1e-5))).sqrt()
    shift = ((0.0 if bias is None else bias.double()) - mean.double()) * scale + (0.0 if beta is None else beta.double())
    if bias_now is None or not torch.allclose(bias_now.double(), shift, rtol=1e-4, atol=1e-5):
        return False
    if source.op == "ConvTranspose":  # (in, out / groups, ...): the norms over all of it are told by the bias well enough
        return True
    expected = old * scale.reshape(-1, *[1] * (old.dim() - 1)).to(old.dtype)
    return bool((new - expected).abs().max() <= 1e-4 * expected.abs().max())


def _data(node: Node, role: str) -> torch.Tensor | None:
    value = node.get(role)
    return value.data if value is not None else None
