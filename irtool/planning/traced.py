"""The traced program against the model that it was traced from: nothing that follows can be right if these differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from irtool.analysis.run import difference
from irtool.ir.fx_graph import FxGraph
from irtool.ir.fx_module import map_tensors
from irtool.ir.fx_untouched import Asides, untouched
from irtool.ir.modes import evaluating

TOLERANCE = 1e-4
"""Relative, in the model's own type: a trace may order sums otherwise than the model (fused attention, say)."""
_SPECIALISED = frozenset({"concrete", "export"})
"""Tracers that decide by the example's sizes."""


def against_model(graph: FxGraph, inputs: Sequence[Any]) -> float:
    """The largest relative difference between the model's outputs and the graph's in eval mode, in the model's own type.

    0 where there is nothing to compare: a graph that a pass made, a model that has other weights by now, or one that refuses
    these inputs.
    """
    own = map_tensors(tuple(inputs), _as_parameters(graph))
    expected = _run(graph.origin, own) if graph.origin is not None and _shares_weights(graph.origin, graph) else None
    return 0.0 if expected is None else difference(expected, _run(graph.module, own))[1]


def holds_elsewhere(graph: FxGraph, inputs: Sequence[Any]) -> bool:
    """Whether a trace that decided by sizes agrees with the model on images of twice the size and on twice as many, where the model
    takes these."""
    if graph.tracer not in _SPECIALISED or graph.origin is None or not _shares_weights(graph.origin, graph):
        return True
    own = map_tensors(tuple(inputs), _as_parameters(graph))
    for larger in (map_tensors(own, _twice), map_tensors(own, _twice_as_many)):
        expected = _run(graph.origin, larger)
        found = None if expected is None else _run(graph.module, larger)
        if expected is not None and (found is None or difference(expected, found)[1] > TOLERANCE):
            return False
    return True


def _run(module: nn.Module | None, inputs: Any) -> Any:
    """Outputs in eval mode, random numbers drawn from one seed, the module left as it was; None if it raises."""
    assert module is not None
    with untouched(module, Asides(), flags=False), evaluating(module), torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            return module(*map_tensors(inputs, torch.clone))
        except Exception:  # the user's code, on inputs that it may not like
            return None


def _shares_weights(model: nn.Module, graph: FxGraph) -> bool:
    held = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    return all(tensor.data_ptr() in held for tensor in graph.module.parameters())


def _as_parameters(graph: FxGraph) -> Any:
    like = next((tensor for tensor in graph.module.parameters() if tensor.is_floating_point()), None)
    return lambda tensor: tensor.to(like) if like is not None and tensor.is_floating_point() else tensor


def _twice(tensor: Tensor) -> Tensor:
    if tensor.dim() < 3 or not tensor.is_floating_point():
        return tensor
    return tensor.repeat(*([1, 1] + [2] * (tensor.dim() - 2)))


def _twice_as_many(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor]) if tensor.dim() > 1 else tensor
