"""Distance of a graph's outputs from those of the graph that it was made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from irtool.ir.frontier import Batch
from irtool.ir.graph import Graph
from irtool.nests import floats_in, tensors_in
from irtool.pruning.reconstruct.images import size_of

TEMPERATURE = 2.0


@dataclass(frozen=True)
class Aims:
    """Images, and what a graph's outputs should be on them.

    Attributes:
        batches: arguments of the graph.
        outputs: the floating outputs for each batch.
    """

    batches: Sequence[Batch]
    outputs: Sequence[list[Tensor]]

    @classmethod
    def of(cls, original: Graph, batches: Sequence[Batch]) -> Aims:
        """Run the original on them."""
        return cls(batches, [outputs_of(original, batch) for batch in batches])

    @property
    def count(self) -> int:
        """Count the images."""
        return sum(map(size_of, self.batches))

    @torch.no_grad()
    def distance(self, graph: Graph) -> float:
        """Measure the distance of a graph's outputs from these, a mean over images; see `distance` below."""
        pairs = zip(self.batches, self.outputs, strict=True)
        return sum(float(distance(outputs_of(graph, batch), aim)) * size_of(batch) for batch, aim in pairs) / max(self.count, 1)


@torch.no_grad()
def outputs_of(graph: Graph, batch: Batch) -> list[Tensor]:
    """The floating outputs of a graph for one batch; all outputs where none is floating, as a segmenter's classes are not."""
    found = graph.run(*batch)
    return [output.detach() for output in floats_in(found) or tensors_in(found)]


def distance(outputs: Sequence[Tensor], aims: Sequence[Any]) -> Tensor:
    """Measure the distance of outputs from what they should be: a mean over images.

    Where the only output is a table (images, classes): `T^2 KL(softmax(aim / T) || softmax(output / T))` with T = 2, classes being what
    adds up to one, or is taken to. Other outputs: squared error over the aim's variance, of whole numbers the share that differs, summed over
    outputs. Outputs of other sizes, as data may make them, are infinitely far.
    """
    if any(output.shape != aim.shape for output, aim in zip(outputs, aims, strict=True)):
        return torch.tensor(torch.inf)
    if len(aims) == 1 and aims[0].dim() == 2 and aims[0].shape[1] > 1 and aims[0].is_floating_point():
        aim, output = aims[0], outputs[0]
        if bool((aim >= 0).all() and ((aim.sum(1) - 1).abs() < 1e-3).all()):
            aim, output = aim.clamp_min(1e-12).log(), output.clamp_min(1e-12).log()
        got, wanted = (F.log_softmax(part.double() / TEMPERATURE, 1) for part in (output, aim))
        return TEMPERATURE**2 * F.kl_div(got, wanted, reduction="batchmean", log_target=True)
    return torch.stack([_error(output, aim) for output, aim in zip(outputs, aims, strict=True)]).sum()


def _error(output: Tensor, aim: Tensor) -> Tensor:
    if not aim.is_floating_point():
        return (output != aim).float().mean()
    return (output - aim).square().mean() / _unit(aim).clamp_min(1e-12)


def _unit(aim: Tensor) -> Tensor:
    """Return the unit of a squared error: the variance; of a single number, which has none, its square."""
    return aim.var() if aim.numel() > 1 else aim.square().sum()
