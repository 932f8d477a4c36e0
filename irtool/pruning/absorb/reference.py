"""The references for absorbed constants. They share nothing with the arithmetic of absorbing: they run the model's own operators."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from irtool.channels.labels import Labels
from irtool.hosts.torch.graph import FxGraph
from irtool.ir.graph import Node, Value
from irtool.modes import evaluating
from irtool.pruning.absorb.absorb import Absorption
from irtool.pruning.absorb.contribution import channel_axis
from irtool.pruning.absorb.moments import Moments, expectations

Run = Callable[[Node, Tensor], Tensor]
"""A layer's own operator on another input of the example's shape."""


@torch.no_grad()
def added_by_layers(labels: Labels, found: Absorption, run: Run) -> dict[str, Tensor]:
    """What absorbed constants add to the output of each call of each layer: what the layer makes of an image of them.

    Spread evenly over positions and over the calls that share a bias, as a bias does. Shapes broadcast against the output.
    """
    nodes = {node.name: node for node in labels.graph.nodes}
    made = {}
    for name, fill in found.fills.items():
        node = nodes[name]
        image = fill.expand(node.input.sizes)
        effect = run(node, image) - run(node, torch.zeros_like(image))
        axis = channel_axis(node, node.output)
        made[name] = effect.mean([d for d in range(effect.dim()) if d != axis], keepdim=True)
    return {name: torch.stack([made[call] for call in calls]).mean(0) for calls in found.calls.values() for name in calls}


def on_torch(labels: Labels) -> Run:
    """Layers as torch runs them."""
    return lambda node, x: labels.graph.evaluate(node, {node.input: x})[0]


def deviation(labels: Labels, layers: Collection[str], inputs: tuple[Any, ...]) -> float:
    """How far the means that layers' inputs are taken to have are from the inputs of a model whose channels are constant.

    Every batch norm gives its shift at every position, whatever flows in, and the rest of the model runs as it is: what
    arrives at a layer then must be the mean that is known of it, entry by entry. Relative to the largest entry, or shift.
    """
    graph = labels.graph
    assert isinstance(graph, FxGraph)
    runner = _Constant(graph, expectations(labels, constant=True), layers)
    with evaluating(graph.module), torch.no_grad():
        runner.run(*inputs)
    return runner.off


class _Constant(fx.Interpreter):
    def __init__(self, graph: FxGraph, means: Mapping[Value, Moments], layers: Collection[str]) -> None:
        super().__init__(graph.module)
        self._means, self._layers, self._value_of = means, layers, graph.value_of
        self._nodes = {node.host: node for node in graph.nodes}
        self.off, self._largest = 0.0, 0.0

    def run_node(self, n: fx.Node) -> Any:
        node = self._nodes.get(n)
        if node is not None and node.name in self._layers:
            self._compare(node.input, next(self.env[used] for used in n.all_input_nodes if self._value_of(used) is node.input))
        result = super().run_node(n)
        if node is None or node.op != "BatchNormalization" or bool(self._means[node.output][0].isnan().any()):
            return result
        shift = self._means[node.output][0]
        self._largest = max(self._largest, float(shift.abs().max()))
        return result.copy_(shift.expand_as(result))

    def _compare(self, value: Value, x: Tensor) -> None:
        mean = self._means[value][0]
        try:
            expected = mean.expand_as(x)
        except (RuntimeError, AssertionError):  # positions differ, and there are others than in the example
            return
        known = ~expected.isnan()
        if bool(known.any()):
            scale = max(float(x[known].abs().max()), float(expected[known].abs().max()), self._largest)
            self.off = max(self.off, float((x[known] - expected[known]).abs().max()) / (scale or 1.0))
