"""The reference for pruning: the original program with the removed channels masked, value by value.

It shares nothing with the slicing: no parameter is touched, every intermediate value is multiplied by 0 or 1 (or, where
constants were absorbed, gets its mean put in before each convolution).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from irtool.analysis.labels import Labels, mixes
from irtool.analysis.survivors import on_survivors
from irtool.ir.fx_graph import FxGraph
from irtool.ir.graph import Node, Value
from irtool.ir.modes import evaluating


class MaskedRun(fx.Interpreter):
    """Runs a graph with channels masked after every node.

    Args:
        graph: the program to run (a copy of the labelled graph in another type will do: nodes are matched by name).
        labels: the first walk over the original.
        keep: whether each label stays, shape (labels,).
        fills: for a contraction node's name, what its input's removed channels are replaced by (of the input's label shape).
        survivors: compute operators that mix channels from the channels that stay, as the sliced graph does.
        average: spread what filled channels add evenly over the image, as a bias does.
    """

    def __init__(self, graph: FxGraph, labels: Labels, keep: Tensor, fills: Mapping[str, Tensor] | None = None, *, average: bool = True,
                 survivors: bool = False) -> None:  # fmt: skip
        super().__init__(graph.module)
        self._labels, self._keep, self._fills, self._average = labels, keep, fills or {}, average
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
            return self._filled(n)
        if n.name in self._mixers:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            masks = self._masks(self._labels.parts(self._nodes[n.name].input))
            if args and masks:
                found = on_survivors(self._nodes[n.name], args[0], masks, lambda x: self._call(n, (x, *args[1:]), kwargs), self._parameter)
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

    def _filled(self, n: fx.Node) -> Any:
        """A convolution or linear layer whose removed inputs hold their mean.

        With `average` what they add is made constant over the image (what a bias can do); without, zero padding cuts it
        off at the border, as it does in the original.
        """
        node = self._nodes[n.name]
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        x = args[0]
        labels = self._labels.of(node.input)
        gone = (labels >= 0) & ~self._keep[labels]
        fill = torch.where(gone, self._fills[n.name], 0).to(x.dtype).expand_as(x)
        if node.op != "Conv" or not self._average:
            return self._call(n, (x + fill, *args[1:]), kwargs)
        with_fill, without = (self._call(n, (t, *args[1:]), kwargs) for t in (fill, torch.zeros_like(x)))
        added = (with_fill - without).mean(tuple(range(2, x.dim())), keepdim=True)
        return self._call(n, args, kwargs) + added

    def _call(self, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return getattr(self, n.op)(n.target, args, kwargs)


@dataclass(frozen=True)
class Masked:
    """The outputs of a masked run, and the channel-mixing nodes that were computed over all channels all the same."""

    outputs: Any
    unresolved: tuple[str, ...]


def masked_run(graph: FxGraph, labels: Labels, keep: Tensor, inputs: tuple[Any, ...], fills: Mapping[str, Tensor] | None = None, *,
               average: bool = True, survivors: bool = False) -> Masked:  # fmt: skip
    """Run the original in eval mode with channels masked; see `MaskedRun`. Outputs have the original's shapes."""
    runner = MaskedRun(graph, labels, keep, fills, average=average, survivors=survivors)
    with evaluating(graph.module), torch.no_grad():
        outputs = runner.run(*(pytree.tree_leaves(inputs) if _is_flat(graph) else inputs))
    return Masked(outputs, tuple(runner.unresolved))


def _is_flat(graph: FxGraph) -> bool:
    return isinstance(graph.module.graph._codegen, fx.graph._PyTreeCodeGen)
