"""A torch graph run with a hook in the place of each node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from irtool.ir.graph import Value
from irtool.ir.hooks import Hook
from irtool.modes import evaluating
from irtool.nests import map_tensors, tensors_in

if TYPE_CHECKING:
    from irtool.hosts.torch.graph import FxGraph


def run_hooked(graph: FxGraph, inputs: Sequence[Any], hook: Hook) -> Any:
    """Run a graph in eval mode without gradients, on copies of the inputs; see `Graph.run_hooked`."""
    runner, inputs = _Hooked(graph, hook), map_tensors(tuple(inputs), torch.clone)
    flat = isinstance(graph.module.graph._codegen, fx.graph._PyTreeCodeGen)
    with evaluating(graph.module), torch.no_grad():
        return runner.run(*(pytree.tree_leaves(inputs) if flat else inputs))


class _Hooked(fx.Interpreter):
    def __init__(self, graph: FxGraph, hook: Hook) -> None:
        super().__init__(graph.module)
        self._hook, self._value_of = hook, graph.value_of
        self._nodes = {node.host: node for node in graph.nodes if node.host is not None}

    def run_node(self, n: fx.Node) -> Any:
        node = self._nodes.get(n)
        if node is None or n.op in ("placeholder", "get_attr", "output"):
            return super().run_node(n)
        reads = {value: self.env[used] for used in n.all_input_nodes if isinstance(value := self._value_of(used), Value)}
        made: list[Any] = []

        def compute(instead: Mapping[Value, Tensor]) -> list[Tensor]:
            made[:] = [self._with(n, instead)]
            return tensors_in(made[0])

        found = self._hook(node, {value: x for value, x in reads.items() if isinstance(x, Tensor)}, compute)
        if not made:  # the hook made it all: the nest is that of the node's values
            return found[0] if len(found) == 1 else tuple(found)
        leaves, spec = pytree.tree_flatten(made[0])
        given = iter(found)
        return pytree.tree_unflatten([next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)

    def _with(self, n: fx.Node, instead: Mapping[Value, Tensor]) -> Any:
        """Run a node with some of what it reads replaced."""
        kept = {used: self.env[used] for used in n.all_input_nodes if self._value_of(used) in instead} if instead else {}
        self.env.update({used: instead[self._value_of(used)] for used in kept})
        try:
            return super().run_node(n)
        finally:
            self.env.update(kept)
