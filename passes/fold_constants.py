"""Compute once what never changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from irtool.ir.graph import G, Graph, Node, Value
from irtool.ops.properties import NEVER_CONSTANT
from irtool.passmanager import Pass, Rewritten, register


@register
@dataclass(frozen=True)
class FoldConstants(Pass):
    """Put constants in the place of operators that read parameters alone, and of sizes that no input can change.

    Exact in eval mode. What was computed from weights (a standardised weight, an interpolated position table) is a constant
    afterwards, and cannot be trained.

    Given:  %a = Mul(@scale, @weight); %b = Conv(%x, %a)
    Result: %b = Conv(%x, @constant_a)

    Left alone: operators that draw random numbers, and what another operator may write over while the program runs.
    """

    name: ClassVar[str] = "fold_constants"

    def rewrite(self, graph: G) -> Rewritten[G]:
        """Fold them. A constant that an output names stays the operator that makes it."""
        new = graph.clone()
        sizes = new.fold_shapes()
        if sizes:
            new.commit()
        computed = _unwritten(new, _computed(new))
        made = {value.producer: data for value, data in computed.items() if value.producer is not None}
        for node, data in made.items():
            if any(reader not in made for reader in node.output.uses):
                new.replace_uses(node.output, new.add_param(f"constant_{node.name}", data, trainable=False))
        if not sizes and not made:
            return Rewritten(graph)
        new.commit()
        return Rewritten(new, tuple(_notes(sizes, list(made))))


def _computed(graph: Graph) -> dict[Value, Tensor]:
    """Compute the results of all operators on parameters alone, in order."""
    found: dict[Value, Tensor] = {}
    for node in graph.nodes:
        single = len(node.outputs) == 1 and node.output not in graph.outputs
        if node.op not in NEVER_CONSTANT and single and graph.is_constant(node, found.keys()):
            data = _drawing_nothing(graph, node, found)
            if data is not None:
                found[node.output] = data
    return found


def _drawing_nothing(graph: Graph, node: Node, values: Mapping[Value, Tensor]) -> Tensor | None:
    """Compute an operator; None if it drew random numbers, which its name alone does not tell. The generators stay as they were."""
    cuda = torch.cuda.is_initialized()
    before = [torch.random.get_rng_state(), *(torch.cuda.get_rng_state_all() if cuda else ())]
    data = graph.evaluate(node, values)[0]
    after = [torch.random.get_rng_state(), *(torch.cuda.get_rng_state_all() if cuda else ())]
    if all(map(torch.equal, before, after)):
        return data
    torch.random.set_rng_state(before[0])
    if cuda:
        torch.cuda.set_rng_state_all(before[1:])
    return None


def _unwritten(graph: Graph, computed: Mapping[Value, Tensor]) -> dict[Value, Tensor]:
    """Those that lie in memory, and come from such, that nothing writes over while the program runs."""
    held = [computed.get(value, value.data) for value in graph.overwritten()]
    written = {_memory(data) for data in held if data is not None}
    kept: dict[Value, Tensor] = {}
    for value, data in computed.items():
        assert value.producer is not None
        sources = [kept.get(source, source.data) for source in value.producer.inputs]
        if all(source is not None and _memory(source) not in written for source in (*sources, data)):
            kept[value] = data
    return kept


def _memory(data: Tensor) -> int:
    """Return the address of a tensor's storage, which all tensors over the same memory share."""
    return data.untyped_storage().data_ptr()


def _notes(sizes: int, made: list[Node]) -> list[str]:
    notes = [f"{sizes} operators on sizes that no input can change became constants"] if sizes else []
    return notes + ([f"{len(made)} operators on parameters alone were computed: {', '.join(n.location for n in made)}"] if made else [])
