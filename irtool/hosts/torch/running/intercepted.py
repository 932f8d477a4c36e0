"""A torch graph run in training with hooks on its values and parameters; gradients pass through what these return."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, fx, nn

from irtool.errors import OptionError
from irtool.hosts.torch.graph import FxGraph
from irtool.ir.graph import Graph

Hook = Callable[[str, Tensor], Tensor]
"""Called with a name in the view and a tensor; what it returns is used in its place."""


class InterceptedNet(nn.Module):
    """A graph's module with hooks. Its parameters are the module's own.

    Args:
        graph: a traced model.
        value: called with each node's only output.
        weight: called with the parameters in `weights`.
        weights: names of parameters.

    Attributes:
        measures: whether batch norms measure statistics in training, as they do by themselves; else they keep those that they have, then too.

    Raises:
        OptionError: the graph is of another host, which has no gradients.
    """

    def __init__(self, graph: Graph, value: Hook, weight: Hook, weights: Collection[str]) -> None:
        super().__init__()
        if not isinstance(graph, FxGraph) or not isinstance(graph.module, fx.GraphModule):
            raise OptionError("there are no gradients here to train by", remedy="Trace the torch model: irtool.trace(model, example).")
        self.inner = graph.module
        self.value, self.weight, self.weights = value, weight, frozenset(weights)
        views = ((node.host.name, node.outputs) for node in graph.nodes if isinstance(node.host, fx.Node))
        self.measures = False
        self.names = {name: outputs[0].name for name, outputs in views if len(outputs) == 1}

    def forward(self, *inputs: Tensor) -> Any:
        """Run the module with the hooks."""
        return _Run(self).run(*inputs)

    def train(self, mode: bool = True) -> InterceptedNet:
        """Put the module into training mode, but for batch norms that keep their statistics."""
        super().train(mode)
        for part in self.inner.modules() if not self.measures else ():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.eval()
        return self


class _Run(fx.Interpreter):
    """One run."""

    def __init__(self, net: InterceptedNet) -> None:
        super().__init__(net.inner)
        self._net = net

    def run_node(self, n: fx.Node) -> Any:
        found, name = super().run_node(n), self._net.names.get(n.name)
        return self._net.value(name, found) if name is not None and isinstance(found, Tensor) else found

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        found = super().get_attr(target, args, kwargs)
        return self._net.weight(target, found) if target in self._net.weights else found

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        layer = self.fetch_attr(target)
        own = {name: value for name, value in layer.named_parameters(recurse=False) if f"{target}.{name}" in self._net.weights}
        if not own:
            return super().call_module(target, args, kwargs)
        rounded = {name: self._net.weight(f"{target}.{name}", value) for name, value in own.items()}
        return torch.func.functional_call(layer, rounded, args, kwargs)
