"""The reference for pruning: the original program with the removed channels masked, value by value.

It shares nothing with the slicing: no parameter is touched, every intermediate value is zero where a channel was removed. Where
constants were absorbed, layers gain what they make of an image of them. Both hosts run it node by node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from irtool.channels.labels import Labels, mixes
from irtool.ir.graph import Graph, Node, Value
from irtool.ir.hooks import Compute
from irtool.nests import tensors_in
from irtool.ops.facets.mixing import on_kept
from irtool.ops.spec import spec_of


class Masking:
    """A hook that masks channels after every node; see `Graph.run_hooked`.

    Args:
        graph: the program that is run (a copy of the labelled graph in another type will do: nodes are matched by name).
        labels: the first walk over the original.
        keep: whether each label stays, shape (labels,).
        added: for a layer's name, a constant that its output gains (of a shape that broadcasts).
        fills: for a layer's name, what its input's removed channels hold (of a shape that broadcasts), in the place of `added`.
        survivors: compute operators that mix channels from the channels that stay, as the sliced graph does.
        inputs: what is run on; it is never written into.
    """

    def __init__(self, graph: Graph, labels: Labels, keep: Tensor, added: Mapping[str, Tensor] | None = None, *,
                 fills: Mapping[str, Tensor] | None = None, survivors: bool = False, inputs: Any = ()) -> None:  # fmt: skip
        self._labels, self._keep, self._added, self._fills = labels, keep, added or {}, fills or {}
        self._mixers = {node.name for node, table, _ in labels.inexacts if survivors and mixes(table, keep)}
        self.unresolved: list[str] = []
        """Channel-mixing nodes that could not be computed from the survivors alone."""
        held = [value.data for value in graph.params.values() if value.data is not None]
        self._foreign = {tensor.untyped_storage().data_ptr() for tensor in [*held, *tensors_in(inputs)]}
        self._nodes: dict[str, Node] = {node.name: node for node in labels.graph.nodes}
        # What stands for real numbers in a file of integers is masked where it is made real: its 0 is not zero.
        self._integers = graph.arithmetic is torch.float64

    def __call__(self, node: Node, reads: Mapping[Value, Tensor], compute: Compute) -> list[Tensor]:
        """Compute a node's outputs, with zeros for channels that are removed."""
        own = self._nodes.get(node.name)
        if own is None:  # a change of type, of a copy in another one
            return compute({})
        found = self._computed(node, own, reads, compute)
        tensors = [self._masked(tensor, value) for tensor, value in zip(found, own.outputs, strict=False)]
        return [*tensors, *found[len(tensors) :]]

    def _computed(self, node: Node, own: Node, reads: Mapping[Value, Tensor], compute: Compute) -> list[Tensor]:
        if own.name in self._fills:
            x = reads[node.input]
            return compute({node.input: x + self._fills[own.name].to(x)})
        if own.name in self._added:
            first, *rest = compute({})
            return [first + self._added[own.name].to(first), *rest]
        masks = self._masks(self._labels.parts(own.input)) if own.name in self._mixers else []
        if masks:
            rule = spec_of(own.op).mixing
            found = rule and on_kept(rule, own, reads[node.input], masks, lambda x: _nest(compute({node.input: x})), self._parameter)
            made = tensors_in(found) if found is not None else []
            if made and not any(value.uses for value in own.outputs[len(made) :]):
                return made
            self.unresolved.append(own.location)
        return compute({})

    def _masks(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Return masks of the channels that stay, one for each label tensor that loses some."""
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
        if not masks or not (self._integers or tensor.is_floating_point()):
            return tensor
        stays = reduce(torch.logical_and, masks)
        # In place, so that a write through a view still reaches what it views; never into a parameter or an input.
        stretched = any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
        if stretched or tensor.untyped_storage().data_ptr() in self._foreign:
            return tensor.masked_fill(~stays, 0)
        return tensor.masked_fill_(~stays, 0)


def _nest(tensors: list[Tensor]) -> Any:
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


@dataclass(frozen=True)
class Masked:
    """The outputs of a masked run, and the channel-mixing nodes that were computed over all channels all the same."""

    outputs: Any
    unresolved: tuple[str, ...]


def masked_run(graph: Graph, labels: Labels, keep: Tensor, inputs: tuple[Any, ...], added: Mapping[str, Tensor] | None = None, *,
               fills: Mapping[str, Tensor] | None = None, survivors: bool = False, places: Sequence[str] = ()) -> Masked:  # fmt: skip
    """Run the original in eval mode with channels masked; see `Masking`.

    Args:
        graph, labels, keep, added, fills, survivors: as for `Masking`.
        inputs: the arguments of the graph.
        places: names of values to return in place of the outputs.

    Returns:
        Outputs, or values, of the original's shapes.
    """
    hook = Masking(graph, labels, keep, added, fills=fills, survivors=survivors, inputs=inputs)
    return Masked(graph.run_hooked(inputs, hook, places), tuple(hook.unresolved))


def held_run(graph: Graph, constants: Mapping[str, Tensor], inputs: tuple[Any, ...], places: Sequence[str] = ()) -> Any:
    """The outputs, or the values named, in eval mode where some nodes give constants (of shapes that broadcast to their results), by name."""

    def hook(node: Node, reads: Mapping[Value, Tensor], compute: Compute) -> list[Tensor]:
        first, *rest = compute({})
        held = constants.get(node.name)
        return [first if held is None else held.to(first).expand_as(first).clone(), *rest]

    return graph.run_hooked(inputs, hook, places)
