"""A graph for other tools and for notebooks: Graphviz's dot, networkx, an SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import networkx as nx

from irtool.ir.nodes import Node, Value

if TYPE_CHECKING:
    from irtool.ir.graph import Graph

MOST_DRAWN = 150
"""Nodes in a notebook's picture. What follows is counted."""
_WIDTH, _HEIGHT, _GAP, _STEP = 190, 30, 16, 52


def operators(graph: Graph) -> list[Node]:
    """List the nodes without those by which a host may mark its inputs and outputs."""
    return [node for node in graph.nodes if node.op not in ("Input", "Output")]


def edges(graph: Graph) -> Iterator[tuple[str, str, Value]]:
    """List who reads what: the names of the giver and of the reader, and the value. Inputs and outputs are ends of their own."""
    inner = operators(graph)
    givers = {value: node.name for node in inner for value in node.outputs} | {v: f"input {v.name}" for v in graph.inputs}
    ends = [(f"output {value.name}", value) for value in graph.outputs]
    for reader, value in [*((node.name, value) for node in inner for value in node.inputs), *ends]:
        if value in givers:
            yield givers[value], reader, value


def dot_of(graph: Graph) -> str:
    """Write a graph in Graphviz's language: a box for each node, the sizes on the edges."""
    lines = ["digraph {", "  rankdir=TB;", '  node [shape=box, style="rounded,filled", fillcolor="#f2f4f5", fontname="sans-serif"];']
    lines += [f'  "{_quoted(f"input {value.name}")}" [shape=plaintext, style=""];' for value in graph.inputs]
    lines += [
        f'  "{_quoted(node.name)}" [label="{_quoted(_title(node))}\\n{_quoted(node.location)}", fillcolor="{_colour(node)}"];'
        for node in operators(graph)
    ]
    lines += [f'  "{_quoted(f"output {value.name}")}" [shape=plaintext, style=""];' for value in graph.outputs]
    lines += [f'  "{_quoted(a)}" -> "{_quoted(b)}" [label="{_sizes(value)}"];' for a, b, value in edges(graph)]
    return "\n".join([*lines, "}"]) + "\n"


def networkx_of(graph: Graph) -> nx.MultiDiGraph:
    """Make a networkx graph: nodes by name with `op`, `location` and `attrs`, inputs and outputs too; edges with `value`, `shape`, `dtype`."""
    made = nx.MultiDiGraph()
    for value in graph.inputs:
        made.add_node(f"input {value.name}", op="Input", location="", attrs={})
    for node in operators(graph):
        made.add_node(node.name, op=node.op, location=node.location, attrs=dict(node.attrs))
    for value in graph.outputs:
        made.add_node(f"output {value.name}", op="Output", location="", attrs={})
    for giver, reader, value in edges(graph):
        made.add_edge(giver, reader, value=value.name, shape=value.shape, dtype=value.dtype)
    return made


def svg_of(graph: Graph) -> str:
    """Draw a graph for a notebook: a row for each step from the inputs, branches side by side."""
    inner = operators(graph)
    shown = inner[:MOST_DRAWN]
    places = _places(shown)
    columns = 1 + max((column for column, _ in places.values()), default=0)
    rows = 1 + max((row for _, row in places.values()), default=0)
    width, height = columns * (_WIDTH + _GAP) + _GAP, rows * _STEP + _GAP
    lines = [_line(places[value.producer], places[node]) for node in shown for value in node.inputs if value.producer in places]
    boxes = [_box(node, *places[node]) for node in shown]
    left = len(inner) - len(shown)
    more = f"<p>and {left:,} nodes more</p>" if left else ""
    style = "font:11px sans-serif;color:#123;background:#fff"
    return (
        f'<div style="max-height:480px;overflow:auto"><svg width="{width}" height="{height}" '
        f'style="{style}">{"".join(lines)}{"".join(boxes)}</svg>{more}</div>'
    )


def _places(nodes: Sequence[Node]) -> dict[Node, tuple[int, int]]:
    """Column and row of each node: below all that it reads, in the first column that is free there, its first giver's if it can be."""
    found: dict[Node, tuple[int, int]] = {}
    taken: set[tuple[int, int]] = set()
    for node in nodes:
        givers = [found[value.producer] for value in node.inputs if value.producer in found]
        row = 1 + max((row for _, row in givers), default=-1)
        column = givers[0][0] if givers else 0
        if (column, row) in taken:
            column = next(number for number in range(len(nodes) + 1) if (number, row) not in taken)
        found[node] = column, row
        taken.add((column, row))
    return found


def _line(start: tuple[int, int], end: tuple[int, int]) -> str:
    x, y = _GAP + start[0] * (_WIDTH + _GAP) + _WIDTH / 2, _GAP + start[1] * _STEP + _HEIGHT
    u, v = _GAP + end[0] * (_WIDTH + _GAP) + _WIDTH / 2, _GAP + end[1] * _STEP
    bend = _WIDTH * 0.55 if start[0] == end[0] and end[1] - start[1] > 1 else 0  # past the boxes between
    return f'<path d="M{x} {y}C{x + bend} {y + 14} {u + bend} {v - 14} {u} {v}" fill="none" stroke="#789"/>'


def _box(node: Node, column: int, row: int) -> str:
    x, y = _GAP + column * (_WIDTH + _GAP), _GAP + row * _STEP
    said = f"{_title(node)}  {_sizes(node.outputs[0]) if node.outputs else ''}"
    return (
        f'<g><title>{escape(str(node))}</title><rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="5" fill="{_colour(node)}" stroke="#9ab"/>'
        f'<text x="{x + 7}" y="{y + 13}">{escape(_short(said))}</text><text x="{x + 7}" y="{y + 25}" fill="#567">{escape(_short(node.location))}</text></g>'
    )


def html_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> str:
    """Write an HTML table for a notebook; numbers stand right."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows)
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{said}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(cell: Any) -> str:
    number = isinstance(cell, int | float) and not isinstance(cell, bool)
    text = f"{cell:,}" if isinstance(cell, int) and number else f"{cell:.3g}" if number else str(cell)
    return f'<td style="text-align:{"right" if number else "left"}">{escape(text)}</td>'


def _title(node: Node) -> str:
    return f"{node.op} {node.callee}" if node.op == "Opaque" else node.op


def _colour(node: Node) -> str:
    """By what a node reads: blue with weights, violet with other parameters, orange where branches meet, red if irtool does not know it."""
    ranks = [len(value.shape or ()) for value in node.inputs if value.is_param]
    branches = sum(not value.is_param for value in node.inputs)
    if node.op == "Opaque":
        return "#f8d3d3"
    if ranks:
        return "#cfe8f5" if max(ranks) > 1 else "#e4dcf3"
    return "#fbe6cf" if branches > 1 else "#f2f4f5"


def _sizes(value: Value) -> str:
    return "×".join(map(str, value.shape)) if value.shape is not None else ""


def _short(text: str, most: int = 31) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
