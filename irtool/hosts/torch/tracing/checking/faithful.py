"""The traced program against the model that it was traced from: nothing that follows can be right if these differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from irtool.hosts.torch.tracing.checking.compare import TOLERANCE, apart_from, like_weights, observed, shares_weights
from irtool.hosts.torch.tracing.checking.fixed_sizes import Fixed, Program, fixed_axes
from irtool.hosts.torch.tracing.checking.reference import Reference

if TYPE_CHECKING:
    from irtool.hosts.torch.graph import FxGraph

__all__ = ["TOLERANCE", "against_model", "fixed_elsewhere"]


def against_model(graph: FxGraph, inputs: Sequence[Any]) -> float:
    """The largest relative difference between the model's outputs and the graph's, in the model's own type.

    Both are in eval mode, but for those of the model's parts that decide by `self.training`: they are in the mode that was traced. 0
    where there is nothing to compare: a graph that a pass made, a model that has other weights by now, or one that refuses these inputs.
    """
    if graph.origin is None or not shares_weights(graph.origin, graph.module):
        return 0.0
    own = like_weights(graph.module, inputs)
    expected = observed(graph.origin, own, graph.decided)
    if expected is None:
        return 0.0
    return apart_from(graph.origin, graph.module, own, graph.decided, expected, observed(graph.module, own))


def fixed_elsewhere(graph: FxGraph, inputs: Sequence[Any]) -> tuple[Fixed, ...]:
    """The axes of the inputs that the model takes in other sizes than the example's, and its graph does not, or with other numbers."""
    if graph.origin is None or not shares_weights(graph.origin, graph.module):
        return graph.fixed
    own = like_weights(graph.module, inputs)
    return fixed_axes(Reference(graph.origin, own, graph.decided), Program(graph.module, own, graph.sized, graph.branches))
