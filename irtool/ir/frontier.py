"""A graph that several batches run side by side, from one node to the next: what an algorithm that changes weights on the way needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from irtool.ir.graph import Node, Value

Batch = tuple[Any, ...]
"""The arguments of one run."""
Seen = Callable[[str, Tensor], None]
"""Called with an observed node's name and its output."""


@dataclass(frozen=True)
class Stop:
    """A node to stop before.

    Attributes:
        node: the node.
        reads: what is looked at there: a value, and a node that reads it.
    """

    node: Node
    reads: Sequence[tuple[Value, Node]]


class Frontier(Protocol):
    """A graph on several batches, advanced from stop to stop. Weights may change between."""

    added: dict[str, Tensor]
    """Tensors that are added to the outputs of nodes from now on, by the node's name; their shapes broadcast over the output."""

    def usable(self, stop: Stop) -> bool:
        """Whether all that the stop looks at can be seen."""

    def running(self) -> AbstractContextManager[Any]:
        """A block in which the graph may be run; what is held is let go at its end."""

    def advance(self, node: Node) -> None:
        """Run all batches up to this stop."""

    def value(self, batch: int, value: Value) -> Tensor:
        """A value that the stop looks at."""

    def output(self, node: Node, x: Tensor) -> Tensor:
        """Compute a layer for an input of its own, weights as they are."""
