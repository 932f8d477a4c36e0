"""Operators that draw random numbers in eval mode: dropout that is always on, noise."""

from __future__ import annotations

from collections.abc import Collection

from irtool.errors import CheckError
from irtool.ir.graph import G, Graph
from irtool.ops.spec import ELEMENTWISE


def without_dropout(graph: G) -> G:
    """Return the graph itself, or a copy over its weights in which each elementwise operator that draws gives its input.

    After pruning such an operator draws for fewer channels, and no two runs are alike. The channels that flow are the same
    without it.
    """
    return without(graph, dropouts(graph))


def dropouts(graph: Graph) -> list[str]:
    """The elementwise operators that draw in eval mode, by name."""
    return [node.name for node in graph.drawing() if node.op in ELEMENTWISE and node.input.shape == node.output.shape]


def without(graph: G, names: Collection[str]) -> G:
    """Return the graph itself, or a copy over its weights in which the operators of these names give their inputs."""
    if not names:
        return graph
    made = graph.shared()
    for node in [node for node in made.nodes if node.name in names]:
        made.bypass(node)
    made.commit()
    return made


def require_repeatable(graph: Graph) -> None:
    """Refuse a graph that no two runs of agree on.

    Raises:
        CheckError: the first node that draws is named.
    """
    for node in graph.drawing():
        raise CheckError(
            f"{node.callee} draws random numbers in eval mode, so that files cannot be compared with the model",
            where=node.location,
            remedy="Export the model in eval mode, or take the operator out; torch.nn.Dropout is off in eval mode. irtool.prune compares nothing.",
        )
