"""An exponential moving average of a module's weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class Average:
    """`average = decay * average + (1 - decay) * now`, for parameters and floating-point buffers; counters are left alone.

    The module must stay on its device while this lives.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._decay = decay
        state = module.state_dict()
        names = [name for name, tensor in state.items() if tensor.is_floating_point()]
        # A state dict's tensors share the module's memory: asking for them once, not at every step, is enough.
        self._now = [state[name] for name in names]
        self._mean = [tensor.detach().clone() for tensor in self._now]
        self._names = names

    @property
    def weights(self) -> dict[str, Tensor]:
        """The averages by name."""
        return dict(zip(self._names, self._mean, strict=True))

    @torch.no_grad()
    def update(self) -> None:
        """Take in the module's present weights."""
        torch._foreach_lerp_(self._mean, self._now, 1 - self._decay)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Continue from stored averages."""
        for name, mean in zip(self._names, self._mean, strict=True):
            mean.copy_(weights[name])

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the module's weights."""
        kept = [tensor.clone() for tensor in self._mean]
        torch._foreach_copy_(self._mean, self._now)
        torch._foreach_copy_(self._now, kept)

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """The average in the module's place, for a while."""
        self.swap()
        try:
            yield
        finally:
            self.swap()
