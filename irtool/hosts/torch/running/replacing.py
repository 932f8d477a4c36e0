"""One run of a traced program in which weights and results are replaced, with gradients."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

import torch
from torch import Tensor, fx


class ReplacingRun(fx.Interpreter):
    """Run a traced program with other weights, and with other values in the place of what its nodes give. Gradients flow through both.

    Args:
        module: the program.
        result: called with the name of each node and what it gives; returns what its readers get.
        weights: names of the parameters that are replaced. A layer's own weight is named after its module.
        weight: called with such a name and the parameter; returns what is computed with.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        result: Callable[[str, Any], Any],
        weights: Container[str],
        weight: Callable[[str, Tensor], Tensor],
    ) -> None:
        super().__init__(module)
        self._result, self._weights, self._weight = result, weights, weight

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, and hand on what stands for its result."""
        return self._result(n.name, super().run_node(n))

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Fetch a parameter, or what stands for it."""
        found = super().get_attr(target, args, kwargs)
        return self._weight(target, found) if target in self._weights and isinstance(found, Tensor) else found

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call a layer, with what stands for its weight."""
        name = f"{target}.weight"
        if name not in self._weights:
            return super().call_module(target, args, kwargs)
        layer = self.fetch_attr(target)
        return torch.func.functional_call(layer, {"weight": self._weight(name, layer.weight)}, args, kwargs)
