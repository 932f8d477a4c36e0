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
    """Whether torch itself gives another result in float64, or on inputs that were moved by a few roundings."""
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
    for reach in _NUDGES:
        far = reach * torch.finfo(torch.float32).eps
        moved = [t * (1 + far * torch.randn(t.shape, generator=generator)) if t.is_floating_point() else t for t in inputs]
        yield results(flat, [new.to(old.device, old.dtype) for new, old in zip(moved, inputs, strict=True)])


_NUDGES = (8, 8, 16, 16, 32, 32, 64, 64)
"""How far inputs are moved, in roundings relative to them: as far as the sums of two programs lie apart, in shallow nets and in deep ones."""
