"""Replaying the steps that made a graph, on an untouched model: only its shapes matter, the weights come after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from irtool.errors import FileError, OptionError
from irtool.hosts.torch.graph import FxGraph
from irtool.passmanager import find

Step = Mapping[str, Any]


def replay(graph: FxGraph, history: Sequence[Step]) -> FxGraph:
    """Apply recorded steps in order. The caller's graph is not changed, and its tensors are not shared.

    Raises:
        PlanError: a step does not fit this model.
        FileError: this version of irtool does not know a step.
    """
    if not history:
        return graph.clone()
    for step in history:
        try:
            kind = find(step["step"])
        except OptionError as error:
            raise FileError(
                f"the step {step['step']!r} cannot be replayed",
                remedy="Load the file without model=, or install the package that has this pass, or a newer irtool.",
            ) from error
        before = graph.history
        graph = kind.replay(graph, step)
        graph.history = (*before, step)
    return graph
