"""A graph as text: the same for the same network, whichever host it comes from."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from irtool.ir.attributes import shown

if TYPE_CHECKING:
    from irtool.ir.graph import Graph, Node, Value

_LONGEST = 60


def text_of(graph: Graph) -> str:
    """A line a node: results and their sizes, operator, operands, attributes. Weights are elided.

    A value is named after the layer whose parameters its node holds, else after its operator and its place among those.
    """
    names = value_names(graph)

    def typed(value: Value) -> str:
        sizes = "x".join(map(str, value.shape)) if value.shape is not None else "?"
        return f"{_named(value)}:{sizes}"

    def _named(value: Value) -> str:
        return f"@{value.name}" if value.is_param else f"%{names[value]}"

    lines = [f"input  {typed(value)}" for value in graph.inputs]
    for node in graph.nodes:
        if node.op in ("Input", "Output"):
            continue
        attrs = ", ".join(f"{key}={_short(value)}" for key, value in sorted(shown(node.attrs).items()))
        results = ", ".join(map(typed, node.outputs))
        operands = ", ".join(typed(value) if value.is_param else _named(value) for value in node.inputs)
        lines.append(f"{results} = {operator(node)}({operands}){f' {{{attrs}}}' if attrs else ''}")
    lines += [f"output {typed(value)}" for value in graph.outputs]
    return "\n".join(lines)


def value_names(graph: Graph) -> dict[Value, str]:
    """A name for each value that flows, unique in its graph and independent of the host."""
    found: dict[Value, str] = {}
    taken: Counter[str] = Counter()
    for node in graph.nodes:
        if not node.outputs:
            continue
        stem = _owner(node) or _snake(node.op)
        name = f"{stem}_{taken[stem]}" if taken[stem] else stem
        taken[stem] += 1
        found.update({value: name if not index else f"{name}.{index}" for index, value in enumerate(node.outputs)})
    return found


def operator(node: Node) -> str:
    """The operator; of one that the view has no name for, also the host's name."""
    return f"Opaque[{node.callee}]" if node.op == "Opaque" else node.op


def _owner(node: Node) -> str:
    """The layer that holds the first parameter: what stands before the last dot of its name."""
    held = next((value for value in node.inputs if value.is_param), None)
    return held.name.rpartition(".")[0] if held is not None else ""


def _snake(op: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", op).lower()


def _short(value: Any) -> str:
    text = str(value).replace(" ", "")
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
