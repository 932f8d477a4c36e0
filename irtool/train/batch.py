"""The data of one training step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """The data of one training step.

    Args:
        images: float32 (N, C, H, W), augmented and normalised.
        labels: int64 (N,).
        targets: the labels, or with mixup probabilities (N, classes).
        indices: int64 (N,): which images of the training split these are (on the CPU); -1 where a user's loader made the batch.
    """

    images: Tensor
    labels: Tensor
    targets: Tensor
    indices: Tensor
