"""Operators that draw random numbers in eval mode, found by running them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from irtool.hosts.torch.running.interpreter import steps
from irtool.hosts.torch.tracing.state.sandbox import TraceNotes, untouched
from irtool.hosts.torch.tracing.state.write_back import put_back_writes
from irtool.ir.analyses import once
from irtool.ir.graph import Node

if TYPE_CHECKING:
    from irtool.hosts.torch.graph import FxGraph


@once
def drawing_nodes(graph: FxGraph) -> list[Node]:
    """The nodes that draw random numbers on the example, found by looking at the generator's state after each."""
    found = []
    with torch.random.fork_rng(devices=[]), untouched(graph.module, TraceNotes(), flags=False), put_back_writes(graph.module):
        state = torch.get_rng_state()
        for node, _, _ in steps(graph, graph.example_inputs):
            before, state = state, torch.get_rng_state()
            if node is not None and not torch.equal(before, state):
                found.append(node)
    return found
