"""The compressed model against the original, in a sentence: how far outputs moved, how often the first class is the same, the accuracy.

The chain of equality says that each step was right; this says what the compression did to the answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from irtool.ir.graph import Graph
from irtool.nests import tensors_in
from irtool.train import Data
from irtool.workflows.equality.chain_inputs import chain_inputs, own_inputs, takes_any_batch
from irtool.workflows.folders.record import Measured

IMAGES = 128
"""Test images that both models are run on."""
_BATCH = 32
_FELL = 0.005
"""A fall of accuracy that is worth a word, half a point: less comes and goes with the images."""


@dataclass(frozen=True)
class Effect:
    """The distance of the compressed model's answers from the original's.

    Attributes:
        difference: the norm of the difference of all outputs over the norm of the original's.
        samples: how many samples both were run on.
        kind: "images" of the test split, or "noise" where there are none.
        agreement: how often both have their largest score at the same class; None where outputs are no scores of classes.
    """

    difference: float
    samples: int
    kind: str
    agreement: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON data."""
        return dict(vars(self))


def effect_of(original: Graph, small: Graph, data: Data | None) -> Effect | None:
    """Run both models on test images, or on noise of the example's sizes, and compare their outputs.

    None where outputs cannot be computed here (an operator of another engine's makes them), or have sizes that are data (detections).
    """
    if original.foreign or original.hidden_outputs():
        return None
    squares, whole, same, count, scores = 0.0, 0.0, 0, 0, True
    fits = data is not None and len(original.example_inputs) == 1
    batches = _images(original, data) if fits and data is not None else iter([_noise(original, small)])
    for inputs in batches:
        before, after = ([leaf.double() for leaf in tensors_in(graph.run(*inputs))] for graph in (original, small))
        pairs = [(a, b) for a, b in zip(before, after, strict=True) if a.shape == b.shape]
        squares += sum(float(((b - a) ** 2).sum()) for a, b in pairs)
        whole += sum(float((a**2).sum()) for a, _ in pairs)
        samples = next((leaf.shape[0] for leaf in inputs if isinstance(leaf, Tensor) and leaf.dim()), 1)
        scores = scores and len(before) == 1 and before[0].dim() == 2 and before[0].shape[1] > 1 and before[0].shape == after[0].shape
        same += int((before[0].argmax(1) == after[0].argmax(1)).sum()) if scores else 0
        count += samples
    difference = (squares / whole) ** 0.5 if whole else 0.0
    return Effect(difference, count, "images" if fits else "noise", same / count if scores and count and fits else None)


def _noise(original: Graph, small: Graph) -> tuple[Any, ...]:
    inputs = chain_inputs(original.example_inputs)
    return inputs if original.runs_on(*inputs) and small.runs_on(*inputs) else own_inputs(original)


def _images(graph: Graph, data: Data) -> Iterator[tuple[Tensor]]:
    """Test images spread over the split, in batches that the graph takes; a last one that is not full is left out if it must be."""
    own = next((leaf.shape[0] for leaf in graph.example_inputs if isinstance(leaf, Tensor) and leaf.dim()), 1)
    size = _BATCH if takes_any_batch(graph) else own
    total = len(data.test)
    chosen = torch.linspace(0, total - 1, min(IMAGES, total)).round().long().unique()
    parts = [part for part in chosen.split(size) if len(part) == size or size == _BATCH]
    for pixels in data.test.batches(parts):
        yield (data.preprocessing.normalise(pixels),)


def sentences(effect: Effect, before: Measured, after: Measured, truth: str) -> tuple[str, ...]:
    """Say what became of the answers, and what to do next where accuracy fell or is unknown.

    Args:
        effect: as measured.
        before, after: the two models; accuracies of None are unknown.
        truth: what accuracies are against, "labels" or the original's "answers".
    """
    what = "test images" if effect.kind == "images" else "samples of noise"
    parts = [f"original against compressed: outputs differ by {100 * effect.difference:.3g} % on {effect.samples:,} {what}"]
    if effect.agreement is not None:
        parts.append(f"top-1 agreement {100 * effect.agreement:.1f} %")
    known = before.accuracy is not None and after.accuracy is not None and truth == "labels"
    fell = known and (before.accuracy or 0) - (after.accuracy or 0) > _FELL
    parts.append(
        f"accuracy {100 * (before.accuracy or 0):.2f} % -> {100 * (after.accuracy or 0):.2f} % ({before.images:,} images)"
        if known
        else "accuracy unknown: no labels"
    )
    remedy = "To gain it back: irtool train FOLDER --stage finetune --data DATA --out TRAINED, or ask for less (--ratio, --budget)."
    return (", ".join(parts), *([remedy] if fell else []))
