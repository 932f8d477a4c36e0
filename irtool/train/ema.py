"""An exponential moving average of a module's weights."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """`average = decay * average + (1 - decay) * now`, for parameters and floating-point buffers; counters are left alone.

    A buffer that a forward gave another size or type starts anew: there is nothing to average it with.

    The module must stay on its device while this lives.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._decay, self._places = decay, _places(module)
        self._found: list[Tensor | None] = []
        self._now: dict[str, Tensor] = {}
        self._mean: dict[str, Tensor] = {}
        self._follow()

    def _follow(self) -> None:
        """Find the tensors that stand in the module now. At most steps they are those of the last one, which is quickly seen."""
        found = [table.get(key) for table, key in self._places.values()]
        if self._found and all(map(operator.is_, found, self._found)):
            return
        self._found, old = found, self._mean
        self._now = {
            name: tensor for name, tensor in zip(self._places, found, strict=True) if tensor is not None and tensor.is_floating_point()
        }
        self._mean = {name: old[name] if alike(old.get(name), now) else now.detach().clone() for name, now in self._now.items()}

    @property
    def weights(self) -> dict[str, Tensor]:
        """The averages by name."""
        return dict(self._mean)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the module's present weights."""
        self._follow()
        torch._foreach_lerp_(list(self._mean.values()), list(self._now.values()), 1 - self._decay)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Continue from stored averages.

        Raises:
            ValueError: they are those of another module.
        """
        if weights.keys() != self._mean.keys() or not all(alike(mean, weights[name]) for name, mean in self._mean.items()):
            raise ValueError("the averages of another module")
        for name, mean in self._mean.items():
            mean.copy_(weights[name])

    @torch.no_grad()
    def place(self, weights: Mapping[str, Tensor] | None = None) -> None:
        """Put the averages, or other weights by the same names, into the module."""
        for name, tensor in (self._mean if weights is None else weights).items():
            table, key = self._places[name]
            if alike(table.get(key), tensor):
                table[key].copy_(tensor)
            else:
                table[key] = tensor.clone()

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """The averages in the module's place, for a while."""
        self._follow()
        kept = {name: tensor.detach().clone() for name, tensor in self._now.items()}
        self.place()
        try:
            yield
        finally:
            self.place(kept)


def alike(a: object, b: object) -> bool:
    """Whether both are tensors, of one shape and one type: whether one's values can stand in the other's memory."""
    return isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and a.dtype == b.dtype


def _places(module: nn.Module) -> dict[str, tuple[dict[str, Any], str]]:
    """Map each entry of the state dict to its place: the table of its owner, and its name there.

    Tables and not tensors: a forward may put another tensor in a buffer's place (`self.mean = ...`). A state dict would
    tell the same, but takes too long to make at every step.
    """
    return {
        f"{path}.{key}" if path else key: (table, key)
        for path, owner in module.named_modules(remove_duplicate=False)
        for table in (owner._parameters, owner._buffers)
        for key in table
        if key not in owner._non_persistent_buffers_set
    }
