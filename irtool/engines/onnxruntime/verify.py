"""Showing that an exported file computes what the module computes, in onnxruntime."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch

from irtool.engines.agreement import relative_error, row_error
from irtool.engines.flat_module import FlatModule, evaluating, tensors_of
from irtool.engines.onnxruntime.exporters import Job
from irtool.engines.onnxruntime.session import OnnxSession

TOLERANCE = 1e-3
"""The largest difference allowed, relative to the largest output: float32 sums in another order."""


def verified(job: Job, draft: Path) -> float:
    """The largest relative difference between onnxruntime and torch over the job's cases.

    A file may put rows in order by their numbers. Where two of these differ by less than rounding the order is no property of the model, as
    torch in float64 shows: rows are compared as a set there.

    Args:
        job: the module, its inputs and results.
        draft: the file.

    Raises:
        ValueError: the file gives other shapes or numbers.
    """
    session, worst = OnnxSession(draft), 0.0
    chooses = any(node.op_type in _CHOICES for node in onnx.load(str(draft), load_external_data=False).graph.node)
    for inputs, expected in job.cases:
        got = session.run(*(t.detach().cpu().numpy() for t in inputs))
        references = [tensor.detach().cpu().numpy() for tensor in expected]
        for name, result, reference in zip(job.output_names, got, references, strict=True):
            if result.shape != reference.shape:
                raise ValueError(f"output {name!r} has shape {result.shape} in the file and {reference.shape} in torch")
        apart = _largest(relative_error, got, references)
        if apart > TOLERANCE and chooses and _is_undecided(job, inputs, references):
            apart = _largest(row_error, got, references)
        worst = max(worst, apart)
    if not worst <= TOLERANCE:
        raise ValueError(f"the file's numbers differ from torch's by {worst:.3g} of the largest")
    return worst


_CHOICES = frozenset({"TopK", "NonMaxSuppression", "ArgMax", "ArgMin"})
"""Operators whose results hang on the order of numbers."""


def _largest(measure: Callable[[np.ndarray, np.ndarray], float], results: Sequence[np.ndarray], references: Sequence[np.ndarray]) -> float:
    return max(measure(result, reference) for result, reference in zip(results, references, strict=True))


def _is_undecided(job: Job, inputs: Sequence[torch.Tensor], references: Sequence[np.ndarray]) -> bool:
    """Whether torch itself gives another result in float64, or on inputs and weights that were moved by a few roundings."""
    return any(_largest(relative_error, found, references) > TOLERANCE for found in _elsewhere(job.flat, inputs))


def _elsewhere(flat: FlatModule, inputs: Sequence[torch.Tensor]) -> Iterator[list[np.ndarray]]:
    """Results of torch that differ from the others by rounding alone, where the order of numbers is decided."""

    def results(module: FlatModule, tensors: Sequence[torch.Tensor]) -> list[np.ndarray]:
        with evaluating(module):
            return [tensor.detach().cpu().numpy() for tensor in tensors_of(module.observed(*tensors))]

    try:
        yield results(copy.deepcopy(flat).double(), [t.double() if t.is_floating_point() else t for t in inputs])
    except (RuntimeError, TypeError):  # what cannot be copied, or states float32 itself
        pass
    generator = torch.Generator().manual_seed(0)

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        by = _NUDGE * torch.randn(tensor.shape, generator=generator)
        return (tensor.detach() * (1 + by.to(tensor.device))).to(tensor.dtype)

    for _ in range(_NUDGES):
        yield results(_with_weights(flat, moved), [moved(tensor) for tensor in inputs])


def _with_weights(flat: FlatModule, moved: Callable[[torch.Tensor], torch.Tensor]) -> FlatModule:
    """A copy of a module with other weights, which rounds in every layer as no other inputs would make it; itself where it cannot be copied."""
    try:
        other = copy.deepcopy(flat)
    except (RuntimeError, TypeError):
        return flat
    for parameter in other.parameters():
        parameter.data = moved(parameter)
    return other


_NUDGES, _NUDGE = 8, 8 * torch.finfo(torch.float32).eps
"""How often inputs and weights are moved, and how far, relative to them: as far as the sums of two programs lie apart."""
