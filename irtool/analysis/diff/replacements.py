"""Replacements between two graphs: nodes without a partner, by the matched nodes around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from irtool.analysis.diff.equivalence import Known, same_function
from irtool.analysis.diff.matching import consumers, data_inputs
from irtool.ir.graph import Graph, Node

LARGEST = 8
"""Longer stretches are removed and added: two unrelated nets are not one replacement of the other."""

Place = tuple[frozenset[Node], frozenset[Node]]
"""The matched nodes before and after a stretch, as the first graph has them."""


Stretch = list[Node]


@dataclass(frozen=True, slots=True)
class Unmatched:
    """The nodes without a partner.

    Attributes:
        added, removed: those in no replacement, in the order of their graph.
        replaced: (nodes of the first graph, nodes of the second) that stand between the same neighbours.
        lowered: the same, where both compute the same; either may be empty.
        rewritten: nodes of the first graph that a batch norm was folded into: that explains their new numbers.
        explained: matched nodes of the first graph that are part of a lowering: that explains all that differs about them.
    """

    added: list[Node]
    removed: list[Node]
    replaced: list[tuple[Stretch, Stretch]]
    lowered: list[tuple[Stretch, Stretch]]
    rewritten: set[Node]
    explained: set[Node]


def find_replacements(a: Graph, b: Graph, pairs: Mapping[Node, Node]) -> Unmatched:
    """Sort the nodes without a partner into replacements, lowerings, removed and added ones."""
    return _Sorting(a, b, pairs).sorted()


class _Sorting:
    """The nodes that still have no explanation, and the explanations found."""

    def __init__(self, a: Graph, b: Graph, pairs: Mapping[Node, Node]) -> None:
        self.a, self.b, self.pairs = a, b, pairs
        self.known = Known.of(pairs)
        self.back = {y: x for x, y in pairs.items()}
        self.gone, self.new = {node for node in a.nodes if node not in pairs}, {node for node in b.nodes if node not in self.back}
        self.replaced: list[tuple[Stretch, Stretch]] = []
        self.lowered: list[tuple[Stretch, Stretch]] = []
        self.rewritten: set[Node] = set()
        self.explained: set[Node] = set()

    def sorted(self) -> Unmatched:
        """Explain what can be explained: stretch by stretch, then stretches with the same source together."""
        for merge in (False, True):
            self._between_neighbours(merge)
        self._merged_below()
        for stretch in _stretches(self.a, self.gone):
            self._folded(stretch) or self._lowered_alone(stretch, [])
        for stretch in _stretches(self.b, self.new):
            self._lowered_alone([], stretch)
        added, removed = ([node for node in graph.nodes if node in left] for graph, left in ((self.b, self.new), (self.a, self.gone)))
        return Unmatched(added, removed, self.replaced, self.lowered, self.rewritten, self.explained)

    def _between_neighbours(self, merge: bool) -> None:
        places = self._places(self.b, self.new, self.back, merge)
        for place, stretch in self._places(self.a, self.gone, None, merge).items():
            other = places.get(place)
            if other is None:
                continue
            if self._lowered_alone(stretch, other):
                continue
            if max(len(stretch), len(other)) <= LARGEST and not merge:
                self._note(self.replaced, stretch, other)

    def _places(self, graph: Graph, free: set[Node], partner: Mapping[Node, Node] | None, merge: bool) -> dict[Place, Stretch]:
        """The stretches by where they stand; with `merge` those that read the same nodes count as one."""
        found: dict[Place, Stretch] = {}
        for stretch in _stretches(graph, free):
            above, below = _place(stretch, partner)
            if merge:
                below = below.union(*(old[1] for old in list(found) if old[0] == above))
                stretch = [*(node for old in list(found) if old[0] == above for node in found.pop(old)), *stretch]
            found.setdefault((above, below), stretch)
        return found

    def _folded(self, stretch: Stretch) -> bool:
        source = _folded_into(stretch, self.pairs)
        if source is None:
            return False
        self.gone.difference_update(stretch)
        self.replaced.append(([source, *stretch], [self.pairs[source]]))
        self.rewritten.add(source)
        return True

    def _lowered_alone(self, xs: Stretch, ys: Stretch) -> bool:
        """Nodes that compute the same, or do so together with the matched product above them, whose bias became an addition."""
        source = self._biased_source(xs, ys)
        if source is not None:
            return self._lowered_pair([source, *xs], [self.pairs[source], *ys], source)
        return self._lowered_pair(xs, ys, None)

    def _biased_source(self, xs: Stretch, ys: Stretch) -> Node | None:
        """The product that both stretches follow, if one of the partners has a bias and the other has none."""
        inside = {*xs, *ys}
        sources = [
            *({p for node in xs for _, p, _ in data_inputs(node)} - inside),
            *({self.back.get(p) for node in ys for _, p, _ in data_inputs(node)} - {None}),
        ]
        source = sources[0] if sources and all(one is sources[0] for one in sources) else None
        if source is None or source.op not in ("Gemm", "MatMul") or source not in self.pairs:
            return None
        biased = [node.get("bias") is not None for node in (source, self.pairs[source])]
        return source if biased[0] != biased[1] else None

    def _merged_below(self) -> None:
        """Concatenations that became one with the concatenation that reads them."""
        for x, y in self.pairs.items():
            if x.op == "Concat":
                xs = [p for p in dict.fromkeys(p for _, p, _ in data_inputs(x)) if p in self.gone]
                ys = [p for p in dict.fromkeys(p for _, p, _ in data_inputs(y)) if p in self.new]
                if xs or ys:
                    self._lowered_pair([*xs, x], [*ys, y], x)

    def _lowered_pair(self, before: Stretch, after: Stretch, partner: Node | None) -> bool:
        """Two stretches, perhaps with a matched pair among them."""
        ends = same_function((self.a, before), (self.b, after), self.known)
        if ends:
            self._note(self.lowered, before, after)
            self.known.values.update(ends)
            self.explained.update([partner] if partner is not None else [])
        return bool(ends)

    def _note(self, where: list[tuple[Stretch, Stretch]], before: Stretch, after: Stretch) -> None:
        where.append((before, after))
        self.gone.difference_update(before)
        self.new.difference_update(after)


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


def _place(stretch: list[Node], partner: Mapping[Node, Node] | None) -> Place:
    inside = set(stretch)
    above = {producer for node in stretch for _, producer, _ in data_inputs(node)} - inside
    below = {user for node in stretch for user in consumers(node)} - inside
    if partner is not None:
        above, below = {partner[node] for node in above}, {partner[node] for node in below}
    return frozenset(above), frozenset(below)


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
    scale = (1.0 if gamma is None else gamma.double()) / (variance.double() + norm.attrs["epsilon"]).sqrt()
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
