"""The sizes that slicing leaves of each value, as rules and hosts read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from irtool.ir.graph import Node, Value


class Sizes(Protocol):
    """The sizes that slicing leaves of each value."""

    def shape(self, value: Value) -> tuple[int, ...]:
        """The shape after slicing."""

    def kept(self, value: Value, axis: int) -> NDArray[np.intp] | None:
        """The positions along an axis that stay, or None if all do."""

    def constant(self, value: Value) -> Tensor | None:
        """The entries that a value had before slicing, if no input can change them; see `Graph.constant`."""

    def groups(self, node: Node) -> int:
        """Count the groups that a convolution has after slicing."""
