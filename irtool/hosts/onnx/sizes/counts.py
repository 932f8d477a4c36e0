"""Axes that the numbers of an ONNX program count, where it computes them from shapes, and the tensors that are filled to such sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from irtool.hosts.onnx.running.evaluate import Array

_MOVES = frozenset({"Gather", "Slice", "Squeeze", "Unsqueeze", "Reshape", "Identity", "Cast", "Flatten", "Concat"})
"""Operators that hand numbers on; all of them but Concat take them as their first input."""
_MOST = 64
"""A list of more numbers is no shape."""
Run = Callable[[Mapping[str, Array]], Sequence[Array]]
"""The node's own operator, on other numbers in the place of its inputs."""


@dataclass(frozen=True)
class Count:
    """A multiple of an axis's size: `times` times axis `axis` of the tensor of that name."""

    tensor: str
    axis: int
    times: int


class Counts:
    """Counts known of the numbers that were computed so far.

    Attributes:
        filled: tensors of one number everywhere, by name: what each of their sizes counts, None for a plain size.
    """

    def __init__(self) -> None:
        self.filled: dict[str, tuple[Count | None, ...]] = {}
        self._axes: list[tuple[str, int]] = []
        self._entries: dict[str, tuple[Array, Array]] = {}
        """By the name of a tensor of integers: which of `_axes` each entry counts (-1: none), and how many times."""

    def note(self, node: gs.Node, inputs: Mapping[str, Array], outputs: Sequence[Array], run: Run) -> None:
        """Follow one node.

        Args:
            node: one whose results depend on shapes alone.
            inputs: their numbers, by name.
            outputs: what it gives.
            run: its operator.
        """
        names = [tensor.name for tensor in node.inputs]
        if node.op == "Shape":
            first, count = len(self._axes), len(outputs[0])
            start = node.attrs.get("start", 0)
            self._axes += [(names[0], start + axis) for axis in range(count)] if start >= 0 else []
            if start >= 0:
                self._entries[node.outputs[0].name] = np.arange(first, first + count), np.ones(count, np.int64)
        elif node.op == "ConstantOfShape" or (node.op == "Expand" and inputs[names[0]].size == 1):
            self._fill(node, names[-1], outputs[0])
        elif any(name in self.filled for name in names):
            self._pass_on(node, names, inputs, outputs[0])
        elif outputs[0].size <= _MOST and any(name in self._entries for name in names):
            self._move(node, names, inputs, run)

    def _fill(self, node: gs.Node, sizes: str, made: Array) -> None:
        places, times = self._entries.get(sizes, (None, None))
        if places is not None and times is not None and places.shape == (made.ndim,):
            self.filled[node.outputs[0].name] = tuple(map(self._count, places.tolist(), times.tolist()))

    def _count(self, place: int, times: int) -> Count | None:
        if place < 0:
            return None
        tensor, axis = self._axes[place]
        return Count(tensor, axis, times)

    def _pass_on(self, node: gs.Node, names: Sequence[str], inputs: Mapping[str, Array], made: Array) -> None:
        """A filled tensor that meets single numbers stays one of its sizes."""
        filled = [name for name in names if name in self.filled]
        others = [inputs[name] for name in names if name not in self.filled]
        if len(filled) == 1 and all(other.size == 1 for other in others) and made.shape == inputs[filled[0]].shape:
            self.filled[node.outputs[0].name] = self.filled[filled[0]]

    def _move(self, node: gs.Node, names: Sequence[str], inputs: Mapping[str, Array], run: Run) -> None:
        moved = names if node.op == "Concat" else names[:1]
        if node.op == "Mul":
            self._multiply(node, names, inputs)
        elif node.op in _MOVES and any(name in self._entries for name in moved):
            places = {name: self._entries[name][0] if name in self._entries else np.full(inputs[name].shape, -1) for name in moved}
            times = {name: self._entries[name][1] if name in self._entries else np.ones(inputs[name].shape, np.int64) for name in moved}
            found = [np.asarray(run({**inputs, **part})[0]).astype(np.int64) for part in (places, times)]
            self._entries[node.outputs[0].name] = found[0], found[1]

    def _multiply(self, node: gs.Node, names: Sequence[str], inputs: Mapping[str, Array]) -> None:
        """A count times a positive whole number."""
        for one, other in (names, names[::-1]):
            if one in self._entries and other not in self._entries:
                places, times, factors = np.broadcast_arrays(*self._entries[one], inputs[other])
                good = (factors > 0) & (factors == factors.astype(np.int64))
                self._entries[node.outputs[0].name] = np.where(good, places, -1), np.where(good, times * factors.astype(np.int64), 1)
