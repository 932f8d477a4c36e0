"""Compute once what never changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from irtool.ir.graph import G, Node, Value
from irtool.passmanager import Pass, PassResult, register

_KEPT = frozenset(
    {"Opaque", "Input", "Output", "Constant", "Dropout", "StochasticDepth", "BatchNormalization", "QuantizeLinear", "DequantizeLinear"}
)
"""Operators that may be random, learn while they run, or say something that a constant would not: how a weight is stored."""


@register
@dataclass(frozen=True)
class FoldConstants(Pass):
    """Put constants in the place of operators that read parameters alone, and of sizes that no input can change.

    Exact in eval mode. What was computed from weights (a standardised weight, an interpolated position table) is a constant
    afterwards, and cannot be trained.

    Given:  %a = Mul(@scale, @weight); %b = Conv(%x, %a)
    Result: %b = Conv(%x, @constant_a)
    """

    name: ClassVar[str] = "fold_constants"

    def __call__(self, graph: G) -> PassResult[G]:
        """Fold them. A constant that an output names stays the operator that makes it."""
        new = graph.clone()
        sizes = new.settle_shapes()
        if sizes:
            new.tidied()
        computed: dict[Value, Tensor] = {}
        for node in new.nodes:
            if (
                node.op not in _KEPT
                and len(node.outputs) == 1
                and node.output not in new.outputs
                and new.is_constant(node, computed.keys())
            ):
                computed[node.output] = new.evaluate(node, computed)[0]
        made = {value.producer: data for value, data in computed.items() if value.producer is not None}
        for node, data in made.items():
            if any(reader not in made for reader in node.output.uses):
                new.settle(node, data)
        if not sizes and not made:
            return PassResult(graph, False)
        new.tidied()
        new.history = (*graph.history, {"step": self.name})
        return PassResult(new, True, tuple(_notes(sizes, list(made))))


def _notes(sizes: int, made: list[Node]) -> list[str]:
    notes = [f"{sizes} operators on sizes that no input can change became constants"] if sizes else []
    return notes + ([f"{len(made)} operators on parameters alone were computed: {', '.join(n.location for n in made)}"] if made else [])
