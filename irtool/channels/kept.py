"""Kept entries of label tensors, cached: shapes, the proof and slicing ask for the same ones many times."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from irtool.ops.rules.context import place


class Kept:
    """The surviving entries of label tensors. Answers are kept: most parameters share their labels with what flows by.

    Args:
        keep: whether each label stays, shape (labels,). What has no label (-1) stays.
    """

    def __init__(self, keep: NDArray[np.bool_]) -> None:
        self.keep = np.append(keep, True)
        self._found: dict[tuple[int, int, int], tuple[Tensor, Tensor, Tensor | None]] = {}

    def of(self, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """The labels of an axis that stay, and their positions; the same tensor and None if all do."""
        where = place(labels)
        found = self._found.get(where)
        if found is None:
            entries = labels.numpy()
            stays = self.keep[entries]
            whole = bool(stays.all())
            left = (labels, None) if whole else (torch.from_numpy(entries[stays]), torch.from_numpy(np.flatnonzero(stays)))
            found = self._found[where] = (labels, *left)  # holds the labels, so that nothing else can come to lie in their place
        return found[1], found[2]
