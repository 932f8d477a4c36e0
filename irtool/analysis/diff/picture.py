"""Two graphs in one, as JSON data: what a page needs to draw them side by side.

A pair of nodes is one entry with two sides, so that a node stands at the same place in both pictures.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any

from irtool.analysis.cost import Cost
from irtool.analysis.diff.changes import channels_of
from irtool.ir.attributes import shown
from irtool.ir.graph import Graph, Node

FORMAT = 1
Picture = dict[str, Any]


def picture(
    a: tuple[Graph, Cost],
    b: tuple[Graph, Cost],
    pairs: Mapping[Node, Node],
    status: Mapping[Node, str],
    notes: Mapping[Node, Sequence[str]],
) -> Picture:
    """Both graphs as one list of nodes, in an order that suits both, with the edges of each.

    Args:
        a, b: a graph and what it costs.
        pairs: partners, from `a` to `b`.
        status: of a node of either graph: `changed`, `added`, `removed`, `replaced` or `lowered`; `same` if it is not there.
        notes: what is to be said about a node of `a`, or of `b` if it has no partner.
    """
    back = {y: x for x, y in pairs.items()}
    rows: list[tuple[Node | None, Node | None]] = [(x, pairs.get(x)) for x in a[0].nodes]
    rows += [(None, y) for y in b[0].nodes if y not in back]
    rows = _ordered(rows, a[0], b[0])
    place = {node: index for index, row in enumerate(rows) for node in row if node is not None}
    modules = _modules(a[0], {})
    modules |= _modules(b[0], {y: modules[x] for x, y in pairs.items()})
    costs = [{node.name: node for node in cost.nodes} for _, cost in (a, b)]
    entries = []
    for x, y in rows:
        node = x if x is not None else y
        assert node is not None
        sides = [_side(one, costs[index]) if one is not None else None for index, one in enumerate((x, y))]
        entries.append({
            "op": node.op, "callee": node.callee, "label": _label(node), "module": modules[node], "status": status.get(node, "same"),
            "notes": list(notes.get(node, ())), "before": sides[0], "after": sides[1],
        })  # fmt: skip
    edges = [_edges(graph, place) for graph in (a[0], b[0])]
    return {"format": FORMAT, "nodes": entries, "edges_before": edges[0], "edges_after": edges[1]}


def _side(node: Node, costs: Mapping[str, Any]) -> dict[str, Any]:
    known = costs.get(node.name)
    value = node.outputs[0] if node.outputs else next(iter(node.inputs), None)
    return {
        "name": node.name,
        "shape": list(value.shape) if value is not None and value.shape is not None else None,
        "channels": channels_of(node),
        "params": known.params if known is not None else 0,
        "macs": known.macs if known is not None else 0,
        "attrs": shown(node.attrs),
        "weights": {role: list(value.sizes) for role, value in node.operands.items() if value.data is not None},
    }


def _ordered(rows: Sequence[tuple[Node | None, Node | None]], a: Graph, b: Graph) -> list[tuple[Node | None, Node | None]]:
    """Topological in both graphs; where the two contradict each other the first one's order stands."""
    index = {node: row for row, pair in enumerate(rows) for node in pair if node is not None}
    readers: dict[int, set[int]] = {}
    waits = dict.fromkeys(range(len(rows)), 0)
    for graph in (a, b):
        for start, end in _edges(graph, index):
            if end not in readers.setdefault(start, set()):
                readers[start].add(end)
                waits[end] += 1
    keys = {node: place / max(len(graph.nodes), 1) for graph in (b, a) for place, node in enumerate(graph.nodes)}
    key = [min(keys[node] for node in pair if node is not None) for pair in rows]
    ready = [(key[row], row) for row, count in waits.items() if not count]
    heapq.heapify(ready)
    left, found = set(waits), []
    while left:
        row = heapq.heappop(ready)[1] if ready else min(left)
        if row not in left:
            continue
        left.discard(row)
        found.append(rows[row])
        for reader in readers.get(row, ()):
            waits[reader] -= 1
            if not waits[reader]:
                heapq.heappush(ready, (key[reader], reader))
    return found


def _edges(graph: Graph, place: Mapping[Node, int]) -> list[list[int]]:
    found = {(place[v.producer], place[node]) for node in graph.nodes for v in node.inputs if v.producer is not None}
    return [list(edge) for edge in sorted(found)]


def _modules(graph: Graph, given: Mapping[Node, str]) -> dict[Node, str]:
    """The module that each node lies in. One that does not say so lies where the nodes lie that it reads.

    Scopes in an ONNX name count if they lead to a module that holds parameters too: some exporters write the last scope only.
    """
    owners = {owner for node in graph.nodes if (owner := _owner(node)) is not None}
    known = {".".join(parts[:length]) for parts in (owner.split(".") for owner in owners) for length in range(1, len(parts))}
    found: dict[Node, str] = {}
    for node in graph.nodes:
        path = _path(node)
        module = path.rpartition(".")[0] if path is not None else None
        from_name = module is not None and _owner(node) is None and "/" in node.location
        if from_name and known and module not in known:
            module = None
        if module is None:
            read = [found[value.producer] for value in node.inputs if value.producer is not None and value.producer.op != "Input"]
            module = _common(read) if node.op != "Output" else ""
        found[node] = given.get(node, module)
    return found


def _common(paths: Sequence[str]) -> str:
    """The innermost module that holds all of them."""
    parts = [path.split(".") if path else [] for path in paths]
    same = zip(*parts, strict=False) if parts else ()
    return ".".join(level[0] for level in takewhile(lambda level: len(set(level)) == 1, same))


def _owner(node: Node) -> str | None:
    """The layer that holds the node's first parameter."""
    held = next((value for value in node.inputs if value.is_param), None)
    return held.name.rpartition(".")[0] if held is not None and "." in held.name else None


def _path(node: Node) -> str | None:
    """`layer1.0.conv1`: from the parameters, the scopes of an ONNX name, or the module that torch was in; None if nothing tells."""
    if node.op in ("Input", "Output"):
        return node.name.replace(".", "_")
    owner = _owner(node)
    if owner is not None:
        return owner
    if "/" in node.location:
        return _scopes([part for part in node.location.split("/") if part])
    inside, _, rest = node.location.partition(" (")
    if rest:
        return f"{inside}.{rest.rstrip(')')}"
    return inside if "." in inside else None


def _scopes(parts: Sequence[str]) -> str | None:
    """`layer1`, `layer1.0`, `conv1`, `Conv` is layer1.0.conv1; a scope of a nested module may repeat the path to it."""
    path = ""
    for part in parts[:-1]:
        path = part if not path or part.startswith(f"{path}.") else f"{path}.{part}"
    return path or None


def _label(node: Node) -> str:
    if node.op == "Input" and node.outputs:
        return node.outputs[0].name
    path = _path(node)
    return path.rpartition(".")[2] if path is not None else node.name


def by_node(items: Iterable[tuple[Node, str]]) -> dict[Node, list[str]]:
    """Notes gathered by node, in order."""
    found: dict[Node, list[str]] = {}
    for node, note in items:
        found.setdefault(node, []).append(note)
    return found
