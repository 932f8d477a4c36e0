"""The model's own results on the example: a trace is compared with them before it is returned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from irtool.errors import TraceError
from irtool.hosts.torch.graph import FxGraph
from irtool.hosts.torch.tracing.checking.compare import (
    apart,
    apart_from,
    equal,
    larger_batch,
    like_weights,
    observed,
    other_images,
    tolerance,
)
from irtool.hosts.torch.tracing.checking.fixed_sizes import Program, fixed_axes, guard, note_of
from irtool.hosts.torch.tracing.checking.reference import Reference
from irtool.nests import map_tensors

_SPECIALISED = frozenset({"concrete", "export"})
"""Tracers that decide by the example's sizes."""


class Witness:
    """The model's outputs, computed when they are first asked for.

    Args:
        model: the model.
        inputs: the example. Its tensors of real numbers are exchanged for random ones, which tell more than zeros and ones do; where
            the model does not take these, it runs on the example.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[Any]) -> None:
        self._model, self._inputs = model, inputs
        self._references: dict[tuple[tuple[str, bool], ...], Reference] = {}

    def agrees(self, graph: FxGraph) -> None:
        """Compare a graph with the model.

        Raises:
            TraceError: they differ, though the model agrees with itself.
        """
        if graph.excused or any(tensor.is_meta for tensor in self._model.parameters()):
            return
        reference = self._reference(graph.decided)
        expected, inputs = reference.outputs(reference.inputs), reference.inputs
        if expected is None:
            return
        found = observed(graph.module, inputs)
        if equal(self._model, graph.module, inputs, graph.decided, expected, found):
            return
        if apart(expected, observed(self._model, inputs, graph.decided)) <= tolerance(expected):
            off = apart_from(self._model, graph.module, inputs, graph.decided, expected, found)
            raise TraceError(f"the graph computes something else than the model (relative difference {off:.2g})")

    def witnessed(self, graph: FxGraph) -> FxGraph:
        """Return the same graph with a note on each axis that it fixes; it refuses sizes at which it would be wrong."""
        if graph.tracer not in _SPECIALISED or any(tensor.is_meta for tensor in self._model.parameters()):
            return graph
        reference = self._reference(graph.decided)
        fixed = fixed_axes(reference, Program(graph.module, reference.inputs, graph.sized, graph.branches))
        graph.fixed = fixed
        graph.notes = (*graph.notes, *self._other_mode(graph, reference.inputs), *(note_of(entry, self._inputs) for entry in fixed))
        if guard(graph.module, fixed, self._inputs):
            graph.refresh()
        return graph

    def _other_mode(self, graph: FxGraph, inputs: tuple[Any, ...]) -> list[str]:
        """A note if an exported graph, which cannot tell who asks for the mode, differs from the model in train mode."""
        if graph.tracer != "export" or graph.decided:
            return []
        expected = observed(self._model, inputs, training=True)
        if expected is None or apart(expected, observed(graph.module, inputs, training=True)) <= tolerance(expected):
            return []
        return [f"{type(self._model).__name__} computes something else in train mode: the graph follows torch's own layers alone"]

    def kept_at(self, graph: FxGraph) -> tuple[Any, ...] | None:
        """Return inputs of another size at which the model runs; None where its runs leave nothing in it that a later run could find."""
        reference = self._reference(graph.decided)
        if not (reference.asides.written or reference.asides.reached):
            return None
        images = (image for image in other_images(reference.inputs) if reference.outputs(image.inputs) is not None)
        sizes = (change.inputs for image in images for change in (larger_batch(image.inputs), image) if change is not None)
        return next((inputs for inputs in sizes if reference.outputs(inputs) is not None), None)

    def _reference(self, decided: dict[str, bool]) -> Reference:
        key = tuple(sorted(decided.items()))
        if key not in self._references:
            generator = torch.Generator().manual_seed(0)

            def drawn(tensor: Tensor) -> Tensor:
                return torch.randn(tensor.shape, generator=generator, device="cpu").to(tensor) if tensor.is_floating_point() else tensor

            own = like_weights(self._model, self._inputs)
            inputs: tuple[Any, ...] = map_tensors(own, drawn)
            reference = Reference(self._model, inputs, decided)
            self._references[key] = Reference(self._model, own, decided) if reference.outputs(inputs) is None else reference
        return self._references[key]
