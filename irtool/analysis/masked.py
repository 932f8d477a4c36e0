"""The reference for pruning: the original program with the removed channels masked, value by value.

It shares nothing with the slicing: no parameter is touched, every intermediate value is multiplied by 0 or 1 (or, where
constants were absorbed, gets its mean put in before each convolution).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from irtool.analysis.labels import Labels
from irtool.ir.fx_graph import FxGraph
from irtool.ir.graph import Node, Value

_CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class MaskedRun(fx.Interpreter):
    """Runs a graph with channels masked after every node.

    Args:
        graph: the program to run (a copy of the labelled graph in another type will do: nodes are matched by name).
        labels: the first walk over the original.
        keep: whether each label stays, shape (labels,).
        fills: for a contraction node's name, what its input's removed channels are replaced by (of the input's label shape).
        fill_padding: fill a convolution's padding as well, so that the constant has no border (what a bias amounts to).
    """

    def __init__(self, graph: FxGraph, labels: Labels, keep: Tensor, fills: Mapping[str, Tensor] | None = None, *, fill_padding: bool = True) -> None:
        super().__init__(graph.module)
        self._labels, self._keep, self._fills, self._fill_padding = labels, keep, fills or {}, fill_padding
        source = labels.graph
        assert isinstance(source, FxGraph)
        self._values = {host.name: source.value_of(host) for host in source.module.graph.nodes}
        self._nodes: dict[str, Node] = {node.name: node for node in source.nodes}

    def run_node(self, n: fx.Node) -> Any:
        result = self._filled(n) if n.name in self._fills else super().run_node(n)
        value = self._values.get(n.name)
        if value is None or n.op in ("placeholder", "get_attr", "output"):
            return result
        leaves, spec = pytree.tree_flatten(result)
        values = [v for v in pytree.tree_leaves(value) if isinstance(v, Value)]
        tensors = iter(values)
        return pytree.tree_unflatten([self._masked(leaf, next(tensors)) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)

    def _masked(self, tensor: Tensor, value: Value) -> Tensor:
        labels = self._labels.values.get(value)
        if labels is None:
            return tensor
        stays = torch.where(labels >= 0, self._keep[labels], True)
        return tensor if bool(stays.all()) else tensor * stays.to(tensor.dtype)

    def _filled(self, n: fx.Node) -> Any:
        """A convolution or linear layer whose removed inputs hold their mean everywhere, padding included."""
        node = self._nodes[n.name]
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        x = args[0]
        fill = torch.where(self._fill_mask(node), self._fills[n.name], 0).to(x.dtype)
        if node.op != "Conv" or not self._fill_padding:
            return self._call(n, (x + fill, *args[1:]), kwargs)
        weight, bias = self._parameter(node, "weight", x), self._parameter(node, "bias", x)
        padding = node.attrs.get("padding", 0)
        spatial = x.dim() - 2
        amounts = (padding,) * spatial if isinstance(padding, int) else tuple(padding)
        padded = F.pad(x, [amount for pair in zip(reversed(amounts), reversed(amounts), strict=True) for amount in pair]) + fill
        assert weight is not None
        return _CONVS[spatial](padded, weight, bias, node.attrs.get("stride", 1), 0, node.attrs.get("dilation", 1), node.attrs.get("groups") or 1)

    def _fill_mask(self, node: Node) -> Tensor:
        labels = self._labels.of(node.input)
        return (labels >= 0) & ~self._keep[labels]

    def _call(self, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return getattr(self, n.op)(n.target, args, kwargs)

    def _parameter(self, node: Node, role: str, like: Tensor) -> Tensor | None:
        value = node.get(role)
        return None if value is None or value.data is None else value.data.to(like)


def masked_run(graph: FxGraph, labels: Labels, keep: Tensor, inputs: tuple[Any, ...], fills: Mapping[str, Tensor] | None = None, *, fill_padding: bool = True) -> Any:
    """Run the original in eval mode with channels masked; outputs have the original's shapes."""
    graph.module.eval()
    with torch.no_grad():
        return MaskedRun(graph, labels, keep, fills, fill_padding=fill_padding).run(*(pytree.tree_leaves(inputs) if _is_flat(graph) else inputs))


def _is_flat(graph: FxGraph) -> bool:
    return isinstance(graph.module.graph._codegen, fx.graph._PyTreeCodeGen)
