"""Distillation without labels: the whole net follows the original's outputs, after its layers were refitted one by one.

A layer that is fitted by itself does not know which of its errors matter behind it. The outputs do. Steps are small, since what the
regressions found is close, and a tenth of the rate that trains a net destroys it. Whether it was worth it is measured on images
that were held back; if it was not, every value is put back.

Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network", with the teacher's term alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from irtool.ir.frontier import Batch
from irtool.ir.graph import Graph
from irtool.progress import Progress, Status, silent
from irtool.pruning.names import is_at
from irtool.pruning.reconstruct.distance import distance, outputs_of
from irtool.pruning.reconstruct.images import layout

HELD_BACK = 8
"""One batch in so many is not trained on."""
WARM_UP = 0.1
"""Fraction of the steps over which the rate rises; it falls with a cosine behind."""
_Outputs = Callable[[Batch], list[Tensor]]


@dataclass
class Distillation:
    """A refitted graph that follows its original.

    Args:
        original: what gives the aims.
        new: the graph whose parameters change in place.
        batches: arguments of both graphs.
        epochs: how often each image is looked at.
        rate: the largest step of a parameter (of Adam, Kingma and Ba 2015).
        ignore: module paths whose parameters stay.
        seed: of the order.
        progress: told of it.
    """

    original: Graph
    new: Graph
    batches: Sequence[Batch]
    epochs: int
    rate: float
    ignore: Sequence[str] = ()
    seed: int = 0
    progress: Progress = silent

    def run(self) -> str:
        """Distil, and say what came of it."""
        names = [name for name in self.new.params if not any(is_at(name, path) for path in self.ignore)]
        descent = self.new.descent(names)
        if descent is None:
            return "not distilled: the graph has no gradients"
        if len(self.batches) < 2 or not descent.parameters:
            return "not distilled: there is nothing to hold back, or nothing that may change"
        laid = layout((self.original, self.new), self.batches[0])
        pairs = [(batch, outputs_of(self.original, laid(batch))) for batch in self.batches]
        step = min(HELD_BACK, len(pairs))
        held = pairs[step - 1 :: step]  # from all over: images may come class by class
        shown = [pair for number, pair in enumerate(pairs) if number % step != step - 1]

        def outputs(batch: Batch) -> list[Tensor]:
            return descent.outputs(laid(batch))

        with descent.running():
            before, old = self._loss(outputs, held), [data.detach().clone() for data in descent.parameters]
            self._train(outputs, descent.parameters, shown)
            after = self._loss(outputs, held)
            gains = after < before  # false for NaN too
            if not gains:
                with torch.no_grad():
                    for data, was in zip(descent.parameters, old, strict=True):
                        data.copy_(was)
        what = f"distance of the outputs on images held back {before:.4g} -> {after:.4g}"
        return f"distilled: {what}" if gains else f"distilling undone, it gained nothing: {what}"

    @torch.no_grad()
    def _loss(self, outputs: _Outputs, pairs: Sequence[tuple[Batch, list[Tensor]]]) -> float:
        return float(sum(float(distance(outputs(batch), aim).detach()) for batch, aim in pairs)) / len(pairs)

    def _train(self, outputs: _Outputs, parameters: Sequence[Tensor], pairs: Sequence[tuple[Batch, list[Tensor]]]) -> None:
        optimizer = torch.optim.Adam(parameters, lr=self.rate)
        generator, steps = torch.Generator().manual_seed(self.seed), self.epochs * len(pairs)
        for number in range(steps):
            if number % len(pairs) == 0:
                order = torch.randperm(len(pairs), generator=generator).tolist()
            batch, aim = pairs[order[number % len(pairs)]]
            for group in optimizer.param_groups:
                group["lr"] = self.rate * _share(number, steps)
            optimizer.zero_grad()
            loss = distance(outputs(batch), aim)
            if not loss.requires_grad or not bool(torch.isfinite(loss.detach())):
                return
            loss.backward()
            optimizer.step()
            self.progress(Status("distil", number + 1, steps, float(loss.detach())))


def _share(number: int, steps: int) -> float:
    """Factor of the learning rate at one step."""
    rise = max(1, int(steps * WARM_UP))
    return (number + 1) / rise if number < rise else 0.5 + 0.5 * math.cos(math.pi * (number - rise) / max(steps - rise, 1))
