"""Matching of the nodes of two graphs.

Both node lists are aligned in their order of execution, as texts are by `diff`: a pair scores by how much speaks for it
(name, module path, parameter names and contents, attributes, shapes, neighbours), and the alignment with the highest sum
of scores is taken (Needleman & Wunsch 1970, with free gaps). So a node that was inserted shifts the names after it
without shifting the pairs. What is left is matched by name, then by its neighbours.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from irtool.ir.attributes import shown
from irtool.ir.graph import Graph, Node

CELLS = 25_000_000
"""The largest table that an alignment may fill (100 MB); longer lists are cut at nodes whose names both have first."""

_WEIGHTS: dict[str, int] = {
    "name": 2, "path": 2, "parameters": 4, "contents": 40, "parameter shapes": 2, "attributes": 2, "shape": 1, "producer names": 2,
    "producer ops": 1, "consumer ops": 1,
}  # fmt: skip
"""Weights of the evidence for a pair of the same operator. Equal weights outweigh the names of a whole block, since these shift."""

_ENOUGH = ("name", "parameters", "contents", "attributes")
"""A pair needs one of these: two convolutions with other names, weights and strides are not each other."""

Pairs = list[tuple[int, int]]


def match_nodes(a: Graph, b: Graph) -> dict[Node, Node]:
    """Pairs of nodes that do the same job, from `a` to `b`, one to one and always of the same operator.

    Inputs and outputs are matched by position. Time and memory grow with the product of the two lengths up to `CELLS`.
    """
    pairs: dict[Node, Node] = {}
    for op in ("Input", "Output"):
        pairs.update(zip((n for n in a.nodes if n.op == op), (n for n in b.nodes if n.op == op), strict=False))
    rows, columns = ([node for node in graph.nodes if node.op not in ("Input", "Output")] for graph in (a, b))
    interned: dict[Hashable, int] = {}
    found = align(_codes(rows, interned, absent=-1), _codes(columns, interned, absent=-2))
    pairs.update((rows[i], columns[j]) for i, j in found)
    _match_by_name(rows, columns, pairs)
    _match_by_neighbours(rows, pairs)
    return pairs


def data_inputs(node: Node) -> list[tuple[str, Node, int]]:
    """(role, producer, which of its outputs) of the inputs that are no parameters."""
    found = []
    for role, value in node.operands.items():
        if value.producer is not None:
            found.append((role, value.producer, next(i for i, output in enumerate(value.producer.outputs) if output is value)))
    return found


def oriented(node: Node, role: str, data: Tensor) -> Tensor:
    """A parameter as the operator's plain form holds it: the weight of a product is (outputs, inputs), however the host keeps it."""
    kept = node.op == "Gemm" and ((role == "weight" and not node.attrs["transB"]) or role == "weight_t")
    return data.t() if kept and data.dim() == 2 else data


def plain_role(role: str) -> str:
    """The role of a parameter without what the host adds to its name."""
    return role.removesuffix("_t").removesuffix("_0")


def consumers(node: Node) -> list[Node]:
    """The nodes that read any output, each once."""
    return list(dict.fromkeys(user for value in node.outputs for user in value.uses))


def _codes(nodes: Sequence[Node], interned: dict[Hashable, int], absent: int) -> NDArray[np.int64]:
    """A number for each feature of each node, the operator first; equal numbers mean equal features."""
    table = np.empty((len(nodes), 1 + len(_WEIGHTS)), np.int64)
    for row, node in enumerate(nodes):
        for column, feature in enumerate(_features(node)):
            table[row, column] = absent if feature in (None, ()) else interned.setdefault((column, feature), len(interned))
    return table


def _features(node: Node) -> tuple[Hashable, ...]:
    """The operator, then one entry for each of `_WEIGHTS`; None or () says nothing about a pair."""
    held = [(value.name, oriented(node, role, value.data)) for role, value in node.operands.items() if value.data is not None]
    producers = [producer for _, producer, _ in data_inputs(node)]
    path = node.location.removesuffix(f" ({node.name})")
    return (
        node.op, node.name, path if path != node.name else None, tuple(name for name, _ in held), next(filter(None, (_sample(data) for _, data in held)), None),
        tuple(tuple(data.shape) for _, data in held), str(sorted(shown(node.attrs).items())), node.output.shape if node.outputs else None,
        tuple(producer.name for producer in producers), tuple(producer.op for producer in producers), tuple(sorted(user.op for user in consumers(node))),
    )  # fmt: skip


def _sample(data: Tensor) -> bytes | None:
    """Up to 32 entries spread over a tensor. One that is constant (a fresh batch norm's scale) has nothing to say."""
    if data.is_meta or data.numel() < 2:
        return None
    places = torch.linspace(0, data.numel() - 1, min(32, data.numel()), dtype=torch.float64).long()
    taken = data.detach().reshape(-1)[places.to(data.device)].cpu().double().numpy()
    return None if bool((taken == taken[0]).all()) else taken.tobytes()


def align(a: NDArray[np.int64], b: NDArray[np.int64]) -> Pairs:
    """Pair the rows of two feature tables in order, so that the sum of scores is as large as can be."""
    start = 0
    while start < min(len(a), len(b)) and bool((a[start, :5] == b[start, :5]).all()):
        start += 1
    head = [(i, i) for i in range(start)]
    a, b = a[start:], b[start:]
    cuts = [] if len(a) * len(b) <= CELLS else _anchors(a, b)
    found: Pairs = []
    above = (0, 0)
    for cut in [*cuts, (len(a), len(b))]:
        part_a, part_b = a[above[0] : cut[0]], b[above[1] : cut[1]]
        if len(part_a) * len(part_b) <= CELLS:  # a longer stretch without a common name is left to the later steps
            found += [(i + above[0], j + above[1]) for i, j in _align_part(part_a, part_b)]
        if cut[0] < len(a):
            found.append(cut)
        above = (cut[0] + 1, cut[1] + 1)
    return head + [(i + start, j + start) for i, j in found]


def _align_part(a: NDArray[np.int64], b: NDArray[np.int64]) -> Pairs:
    best = np.zeros((len(a) + 1, len(b) + 1), np.int32)
    for i, row in enumerate(a):
        best[i + 1, 1:] = np.maximum(best[i, 1:], best[i, :-1] + _scores(row, b))
        np.maximum.accumulate(best[i + 1], out=best[i + 1])
    found: Pairs = []
    i, j = len(a), len(b)
    while i and j:
        if best[i, j] == best[i - 1, j]:
            i -= 1
        elif best[i, j] == best[i, j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            found.append((i, j))
    return found[::-1]


def _scores(row: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int32]:
    """Score the pairs of one node with each of `b`; 0 for no pair."""
    equal = b == row
    enough = np.zeros(len(b), bool)
    for name in _ENOUGH:
        enough |= equal[:, 1 + list(_WEIGHTS).index(name)]
    score: NDArray[np.int32] = (1 + equal[:, 1:] @ np.array(list(_WEIGHTS.values()), np.int32)) * (equal[:, 0] & enough)
    return score


def _anchors(a: NDArray[np.int64], b: NDArray[np.int64]) -> Pairs:
    """Pairs with the same operator and name, unique in both, in the longest run whose order agrees."""
    keys = [[(int(row[0]), int(row[1])) for row in table] for table in (a, b)]
    once = [{key for key, count in Counter(side).items() if count == 1} for side in keys]
    place = {key: j for j, key in enumerate(keys[1])}
    candidates = [(i, place[key]) for i, key in enumerate(keys[0]) if key in once[0] and key in once[1]]
    ends: list[int] = []
    last: list[int] = []
    before: list[int] = []
    for index, (_, j) in enumerate(candidates):
        length = bisect_left(ends, j)
        ends[length:] = [j, *ends[length + 1 :]]
        last[length:] = [index, *last[length + 1 :]]
        before.append(last[length - 1] if length else -1)
    run: Pairs = []
    index = last[-1] if last else -1
    while index >= 0:
        run.append(candidates[index])
        index = before[index]
    return run[::-1]


def _match_by_name(rows: Sequence[Node], columns: Sequence[Node], pairs: dict[Node, Node]) -> None:
    """Match nodes by name that the order kept apart: branches that are computed in another order."""
    taken = set(pairs.values())
    free = {(node.op, node.name): node for node in columns if node not in taken}
    for node in rows:
        if node not in pairs and (node.op, node.name) in free:
            pairs[node] = free.pop((node.op, node.name))


def _match_by_neighbours(rows: Sequence[Node], pairs: dict[Node, Node]) -> None:
    """A node all of whose producers are matched takes the one free reader of their partners with its operator and attributes."""
    taken = set(pairs.values())
    for node in rows:
        sources = [pairs.get(producer) for _, producer, _ in data_inputs(node)]
        if node in pairs or not sources or sources[0] is None:
            continue
        attrs = str(shown(node.attrs))
        fits = [
            other
            for other in consumers(sources[0])
            if other not in taken
            and other.op == node.op
            and [producer for _, producer, _ in data_inputs(other)] == sources
            and str(shown(other.attrs)) == attrs
        ]
        if len(fits) == 1:
            pairs[node] = fits[0]
            taken.add(fits[0])
