"""What slicing leaves of each value, as a host is told it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from irtool.ir.graph import Node, Value


class Sizes(Protocol):
    """The sizes that slicing leaves of each value."""

    def shape(self, value: Value) -> tuple[int, ...]:
        """The shape after slicing."""

    def kept(self, value: Value, axis: int) -> NDArray[np.intp] | None:
        """The positions along an axis that stay, or None if all do."""

    def groups(self, node: Node) -> int:
        """Count the groups that a convolution has after slicing."""
