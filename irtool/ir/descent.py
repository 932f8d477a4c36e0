"""Interface for algorithms that change a graph's parameters by their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor


class Descent(Protocol):
    """A graph whose parameters take gradients."""

    @property
    def parameters(self) -> Sequence[Tensor]:
        """Those that may change; an optimizer does it in place."""
        ...

    def running(self) -> AbstractContextManager[Any]:
        """A block in which the graph may be run; flags are as before after it."""

    def outputs(self, batch: Sequence[Any]) -> list[Tensor]:
        """The outputs on a batch in eval mode, those that are real numbers, with a way back to the parameters."""
