"""Origins of channels that no layer makes."""

from __future__ import annotations

from irtool.channels.labels import Labels
from irtool.ir.graph import Value


def of_the_input(labels: Labels) -> set[Value]:
    """The values that hold channels of the graph's input, moved about or added to, on the way from it."""
    found = set(labels.graph.inputs)
    for node in labels.graph.nodes:
        if not found.isdisjoint(node.inputs):
            found.update(value for value in node.outputs if value in labels.values and bool((labels.values[value] < 0).any()))
    return found
