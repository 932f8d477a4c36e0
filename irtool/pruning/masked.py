"""The reference for pruning: the original program with the removed channels masked, value by value.

It shares nothing with the slicing: no parameter is touched, every intermediate value is multiplied by 0 or 1. Where
constants were absorbed, layers gain what they make of an image of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from irtool.channels.labels import Labels, mixes
from irtool.hosts.torch.graph import FxGraph
from irtool.hosts.torch.modes import evaluating
from irtool.ir.graph import Node, Value
from irtool.ops.mixing import on_survivors


class MaskedRun(fx.Interpreter):
    """Runs a graph with channels masked after every node.

    Args:
        graph: the program to run (a copy of the labelled graph in another type will do: nodes are matched by name).
        labels: the first walk over the original.
        keep: whether each label stays, shape (labels,).
        added: for a layer's name, a constant that its output gains (of a shape that broadcasts).
        fills: for a layer's name, what its input's removed channels hold (of a shape that broadcasts), in the place of `added`.
        survivors: compute operators that mix channels from the channels that stay, as the sliced graph does.
    """

    def __init__(self, graph: FxGraph, labels: Labels, keep: Tensor, added: Mapping[str, Tensor] | None = None, *,
                 fills: Mapping[str, Tensor] | None = None, survivors: bool = False) -> None:  # fmt: skip
        super().__init__(graph.module)
        self._labels, self._keep, self._added, self._fills = labels, keep, added or {}, fills or {}
        self._mixers = {node.name for node, table, _ in labels.inexacts if survivors and mixes(table, keep)}
        self.unresolved: list[str] = []
        """Channel-mixing nodes that could not be computed from the survivors alone."""
        self._foreign = {tensor.untyped_storage().data_ptr() for tensor in [*self.module.parameters(), *self.module.buffers()]}
        source = labels.graph
        assert isinstance(source, FxGraph)
        self._values = {host.name: source.value_of(host) for host in source.module.graph.nodes}
        self._nodes: dict[str, Node] = {node.name: node for node in source.nodes}

    def run(self, *args: Any, **options: Any) -> Any:
        self._foreign |= {leaf.untyped_storage().data_ptr() for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)}
        return super().run(*args, **options)

    def run_node(self, n: fx.Node) -> Any:
        result = self._special(n)
        value = self._values.get(n.name)
        if value is None or n.op in ("placeholder", "get_attr", "output"):
            return result
        leaves, spec = pytree.tree_flatten(result)
        values = [v for v in pytree.tree_leaves(value) if isinstance(v, Value)]
        tensors = iter(values)
        return pytree.tree_unflatten([self._masked(leaf, next(tensors)) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)

    def _special(self, n: fx.Node) -> Any:
        if n.name in self._fills:
            return self._with_input(n, self._input(n) + self._fills[n.name].to(self._input(n)))
        if n.name in self._added:
            result = super().run_node(n)
            return result + self._added[n.name].to(result)
        if n.name in self._mixers:
            masks = self._masks(self._labels.parts(self._nodes[n.name].input))
            if masks:
                found = on_survivors(self._nodes[n.name], self._input(n), masks, lambda x: self._with_input(n, x), self._parameter)
                if found is not None:
                    return found
                self.unresolved.append(self._nodes[n.name].location)
        return super().run_node(n)

    def _masks(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Which channels stay, for each label tensor that loses some."""
        masks = [torch.where(labels >= 0, self._keep[labels], True) for labels in parts] if self._keep.numel() else []
        return [mask for mask in masks if not bool(mask.all())]

    def _parameter(self, value: Value) -> Tensor:
        """A parameter's surviving entries."""
        data = value.data
        assert data is not None
        for (name, axis), labels in self._labels.axes.items():
            if name == value.name and isinstance(axis, int) and int(labels[0]) >= 0:
                data = data.index_select(axis, self._keep[labels].nonzero()[:, 0])
        return data

    def _masked(self, tensor: Tensor, value: Value) -> Tensor:
        masks = self._masks(self._labels.parts(value)) if value in self._labels.values else []
        if not masks:
            return tensor
        stays = reduce(torch.logical_and, masks)
        # In place, so that a write through a view still reaches what it views; never into a parameter or an input.
        stretched = any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
        if stretched or tensor.untyped_storage().data_ptr() in self._foreign:
            return tensor.masked_fill(~stays, 0)
        return tensor.masked_fill_(~stays, 0)

    def _source(self, n: fx.Node) -> fx.Node:
        """The host node that gives the first input, be it an argument by place or by name."""
        value = self._nodes[n.name].input
        return next(used for used in n.all_input_nodes if self._values.get(used.name) is value)

    def _input(self, n: fx.Node) -> Tensor:
        found: Tensor = self.env[self._source(n)]
        return found

    def _with_input(self, n: fx.Node, x: Tensor) -> Any:
        """Run a node on another first input."""
        source = self._source(n)
        kept, self.env[source] = self.env[source], x
        try:
            return super().run_node(n)
        finally:
            self.env[source] = kept


@dataclass(frozen=True)
class Masked:
    """The outputs of a masked run, and the channel-mixing nodes that were computed over all channels all the same."""

    outputs: Any
    unresolved: tuple[str, ...]


def masked_run(graph: FxGraph, labels: Labels, keep: Tensor, inputs: tuple[Any, ...], added: Mapping[str, Tensor] | None = None, *,
               fills: Mapping[str, Tensor] | None = None, survivors: bool = False) -> Masked:  # fmt: skip
    """Run the original in eval mode with channels masked; see `MaskedRun`. Outputs have the original's shapes."""
    runner = MaskedRun(graph, labels, keep, added, fills=fills, survivors=survivors)
    with evaluating(graph.module), torch.no_grad():
        outputs = runner.run(*(pytree.tree_leaves(inputs) if _is_flat(graph) else inputs))
    return Masked(outputs, tuple(runner.unresolved))


class _HeldRun(fx.Interpreter):
    """Runs a program in which some nodes give a constant in the place of their result."""

    def __init__(self, graph: FxGraph, constants: Mapping[str, Tensor]) -> None:
        super().__init__(graph.module)
        self._constants = constants

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        return self._constants[n.name].to(result).expand_as(result).clone() if n.name in self._constants else result


def held_run(graph: FxGraph, constants: Mapping[str, Tensor], inputs: tuple[Any, ...]) -> Any:
    """The outputs in eval mode where some nodes give constants (of shapes that broadcast to their results), by name."""
    with evaluating(graph.module), torch.no_grad():
        return _HeldRun(graph, constants).run(*(pytree.tree_leaves(inputs) if _is_flat(graph) else inputs))


def _is_flat(graph: FxGraph) -> bool:
    return isinstance(graph.module.graph._codegen, fx.graph._PyTreeCodeGen)
