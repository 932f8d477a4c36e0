"""Replaying the steps that made a graph, on an untouched model: only its shapes matter, the weights come after."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from irtool.errors import FileError
from irtool.hosts.torch.graph import FxGraph
from irtool.passes import DeadCode, FoldBatchNorm, FoldConstants, InsertSelects, RemoveIdentity
from irtool.passes.fold_norm_forward import fold_named
from irtool.passmanager import Pass
from irtool.pruning.absorb.bias import add_biases, add_to_biases, no_gains, outputs_of
from irtool.pruning.planner import Plan, find_rewrite

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
        function = STEPS.get(step["step"])
        if function is None:
            raise FileError(
                f"the step {step['step']!r} cannot be replayed", remedy="Load the file without model=, or install a newer irtool."
            )
        graph = function(graph, step)
    return graph


def _prune(graph: FxGraph, step: Step) -> FxGraph:
    """Slice; layers that took up constants when the plan was carried out get biases to load into."""
    rewrite = find_rewrite(graph, Plan.from_dict(step["plan"]))
    labels, keep = rewrite.labels, rewrite.keep
    zeros = no_gains(labels, step["biases"])
    new = rewrite.fill()
    new = add_biases(new, labels, keep, zeros) if zeros else new
    new.history = (*graph.history, step)
    return new


def _reduce_width(graph: FxGraph, step: Step) -> FxGraph:
    new = find_rewrite(graph, Plan.from_dict(step["plan"])).fill()
    new.history = (*graph.history, step)
    return new


def _values_only(graph: FxGraph, step: Step) -> FxGraph:
    """A step that changed values and no shape: the weights that are loaded afterwards have them."""
    new = graph.clone()
    new.history = (*graph.history, step)
    return new


def _reconstruct(graph: FxGraph, step: Step) -> FxGraph:
    """Give layers the biases that they were given; the weights that are loaded afterwards have the values."""
    new = graph.clone()
    new = add_to_biases(new, {name: torch.zeros(outputs_of(new, name)) for name in step["biases"]})
    new.history = (*graph.history, step)
    return new


def _again(kind: type[Pass], *options: str) -> Callable[[FxGraph, Step], FxGraph]:
    """A step that is its pass applied once more, with the recorded options."""

    def apply(graph: FxGraph, step: Step) -> FxGraph:
        new = kind(**{name: step[name] for name in options})(graph).graph
        new.history = (*graph.history, step)
        return new

    return apply


STEPS: dict[str, Callable[[FxGraph, Step], FxGraph]] = {
    "prune": _prune,
    "fold_batchnorm": _again(FoldBatchNorm),
    "insert_selects": _again(InsertSelects),
    "dead_code": _again(DeadCode),
    "remove_identity": _again(RemoveIdentity, "dropout"),
    "fold_constants": _again(FoldConstants),
    "recalibrate_batchnorm": _values_only,
    "reconstruct": _reconstruct,
    "reduce_width": _reduce_width,
    "equalise": _values_only,
    "fold_norm_forward": lambda graph, step: fold_named(graph, step["folded"]),
}
"""How each step that a pass writes into `FxGraph.history` is done again. Each appends itself to the history."""
