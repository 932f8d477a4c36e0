"""Numbers that a sliced ONNX program computes from the sizes of its values, put right at every size of the inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from irtool.hosts.onnx.reader import Reader
from irtool.hosts.onnx.running.evaluate import Array
from irtool.hosts.onnx.sizes.value_types import FROM_SHAPE

Insert = Callable[[gs.Node, Sequence[gs.Node]], None]
"""Puts nodes in front of a host node under names that are free, and reads them."""


def scaled(host: gs.Node, tensor: gs.Tensor, new: Array, old: Array, name: str, insert: Insert) -> gs.Tensor:
    """Return integers times `new / old`, entry by entry: what is proportional to a number of channels stays so at every size.

    Args:
        host: the node in front of which they are computed.
        tensor: the integers.
        new, old: what they should be and are for the example, of its shape; equal where they stay.
        name: of the result, and what the names in between begin with.
        insert: how nodes come into the program.
    """
    common = np.gcd(new, old)
    times, by = (np.where(new == old, 1, part // np.maximum(common, 1)).astype(old.dtype) for part in (new, old))
    flowing = tensor
    for op, factor in (("Mul", times), ("Div", by)):
        if (factor != 1).any():
            result = gs.Variable(f"{name}.{op}")
            insert(
                host, [gs.Node(op, f"{result.name}.node", inputs=[flowing, gs.Constant(f"{result.name}.factor", factor)], outputs=[result])]
            )
            flowing = result
    return flowing


class OriginalNumbers:
    """Computes numbers from the sizes that values had before slicing, so that they are what they were at every size.

    Args:
        known: the numbers of the program before slicing, for the example, by the names of their tensors.
        insert: how nodes come into the program.
    """

    def __init__(self, known: dict[str, Array], insert: Insert) -> None:
        self._known, self._insert = known, insert
        self._made: dict[str, gs.Tensor] = {}

    def of(self, reader: Reader, host: gs.Node, tensor: gs.Tensor) -> gs.Tensor:
        """Return a tensor that holds what another one held.

        Args:
            reader: what is known of the sliced program so far.
            host: the node that reads it.
            tensor: one that is computed from sizes.
        """
        computed, before = reader.known.get(tensor.name), self._known.get(tensor.name)
        if computed is None or before is None or computed.shape != before.shape or np.array_equal(computed, before):
            return tensor
        if tensor.name not in self._made:
            self._made[tensor.name] = self._again(reader, host, tensor, before, computed)
        return self._made[tensor.name]

    def _again(self, reader: Reader, host: gs.Node, tensor: gs.Tensor, before: Array, computed: Array) -> gs.Tensor:
        """Repeat the operators that made a number, on the sizes before slicing."""
        maker = tensor.inputs[0]
        name = f"{tensor.name}.original"
        if maker.op in FROM_SHAPE:
            return scaled(host, tensor, before, computed, name, self._insert)
        inputs = [self.of(reader, host, given) for given in maker.inputs]
        outputs = [gs.Variable(f"{output.name}.original") for output in maker.outputs]
        self._insert(host, [gs.Node(maker.op, f"{maker.name}.original", dict(maker.attrs), inputs, outputs, maker.domain)])
        self._made.update(zip([output.name for output in maker.outputs], outputs, strict=True))
        return self._made[tensor.name]
