"""`irtool.ir.descent.Descent` over a torch graph."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from irtool.modes import evaluating
from irtool.nests import floats_in

if TYPE_CHECKING:
    from irtool.hosts.torch.graph import FxGraph


class TorchDescent:
    """Runs of a torch graph in eval mode with gradients: statistics of batch norms stay, their scales and shifts may move.

    Args:
        graph: whose parameters change in place.
        names: the parameters that may.
    """

    def __init__(self, graph: FxGraph, names: Collection[str]) -> None:
        self.graph = graph
        self._all = list(graph.module.parameters())
        self.parameters: list[Tensor] = [
            data for name, data in graph.module.named_parameters() if name in names and data.is_floating_point()
        ]

    @contextmanager
    def running(self) -> Iterator[None]:
        """A block in which the chosen parameters, and no others, take gradients."""
        flags = [(data, data.requires_grad) for data in self._all]
        chosen = {id(data) for data in self.parameters}
        try:
            for data in self._all:
                data.requires_grad_(id(data) in chosen)
            with evaluating(self.graph.module):
                yield
        finally:
            for data, flag in flags:
                data.grad = None
                data.requires_grad_(flag)

    def outputs(self, batch: Sequence[Any]) -> list[Tensor]:
        """The outputs that are real numbers."""
        copies = [part.clone() if isinstance(part, Tensor) else part for part in batch]  # a program may write into its inputs
        with torch.enable_grad():
            found = self.graph.module(*copies)
        return floats_in(found)
