"""Operators that draw random numbers in eval mode: dropout that is always on, noise."""

from __future__ import annotations

import torch

from irtool.errors import CheckError
from irtool.hosts.torch.graph import FxGraph
from irtool.hosts.torch.interpreter import steps
from irtool.hosts.torch.tracing.sandbox import Asides, untouched
from irtool.hosts.torch.tracing.write_back import put_back_writes
from irtool.ir.graph import G, Graph, Node
from irtool.ops.spec import ELEMENTWISE


def random_nodes(graph: FxGraph) -> list[Node]:
    """The nodes that draw random numbers on the example, found by looking at the generator's state after each."""
    found = graph.analyses.get("random")
    if found is None:
        found = []
        with torch.random.fork_rng(devices=[]), untouched(graph.module, Asides(), flags=False), put_back_writes(graph.module):
            state = torch.get_rng_state()
            for node, _, _ in steps(graph, graph.example_inputs):
                before, state = state, torch.get_rng_state()
                if node is not None and not torch.equal(before, state):
                    found.append(node)
        graph.analyses["random"] = found
    nodes: list[Node] = found
    return nodes


def without_dropout(graph: G) -> G:
    """The same graph, or a copy over the same weights in which each elementwise operator that draws gives its input.

    After pruning such an operator draws for fewer channels, and no two runs are alike. The channels that flow are the same
    without it.
    """
    drawing = random_nodes(graph) if isinstance(graph, FxGraph) else []
    names = [node.name for node in drawing if node.op in ELEMENTWISE and node.input.shape == node.output.shape]
    if not names:
        return graph
    made = graph.shared()
    for node in [node for node in made.nodes if node.name in names]:
        made.bypass(node)
    made.tidied()
    return made


def require_repeatable(graph: Graph) -> None:
    """Refuse a torch graph that no two runs of agree on.

    Raises:
        CheckError: the first node that draws is named.
    """
    for node in random_nodes(graph) if isinstance(graph, FxGraph) else ():
        raise CheckError(
            f"{node.callee} draws random numbers in eval mode, so that files cannot be compared with the model",
            where=node.location,
            remedy="Use torch.nn.Dropout, which is off in eval mode, or irtool.prune from Python.",
        )
