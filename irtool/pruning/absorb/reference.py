"""The references for absorbed constants. They share nothing with the arithmetic of absorbing: they run the model's own operators."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from irtool.ir.graph import Graph, Node, Value
from irtool.ir.hooks import Compute
from irtool.ops.facets.moments import Moments
from irtool.pruning.absorb.absorb import Absorption
from irtool.pruning.absorb.contribution import channel_axis
from irtool.pruning.absorb.moments import expectations


@torch.no_grad()
def added_by_layers(graph: Graph, found: Absorption) -> dict[str, Tensor]:
    """Compute what absorbed constants add to the output of each call of each layer: its output for an image of them.

    Spread evenly over positions and over the calls that share a bias, as a bias does. Shapes broadcast against the output.

    Args:
        graph: the original, or a copy of it in another type: layers are found by name.
        found: what is absorbed.
    """
    nodes = {node.name: node for node in graph.nodes}
    made = {}
    for name, fill in found.fills.items():
        node = nodes[name]
        image = fill.expand(node.input.sizes)
        effect = graph.layer(node, image) - graph.layer(node, torch.zeros_like(image))
        axis = channel_axis(node, node.output)
        made[name] = effect.mean([d for d in range(effect.dim()) if d != axis], keepdim=True)
    return {name: torch.stack([made[call] for call in calls]).mean(0) for calls in found.calls.values() for name in calls}


def deviation(graph: Graph, layers: Collection[str], inputs: tuple[Any, ...]) -> float:
    """Measure the distance of the means that layers' inputs are taken to have from the inputs of a model whose channels are constant.

    Every batch norm gives its shift at every position, whatever flows in, and the rest of the model runs as it is: what
    arrives at a layer then must be the mean that is known of it, entry by entry. Relative to the largest entry, or shift.
    """
    hook = _Constant(expectations(graph, constant=True), layers)
    graph.run_hooked(inputs, hook)
    return hook.off


class _Constant:
    """A hook that lets each batch norm give its shift, and compares what layers read with the means that are known of it."""

    def __init__(self, means: Mapping[Value, Moments], layers: Collection[str]) -> None:
        self._means, self._layers = means, layers
        self.off, self._largest = 0.0, 0.0

    def __call__(self, node: Node, reads: Mapping[Value, Tensor], compute: Compute) -> list[Tensor]:
        if node.name in self._layers:
            self._compare(node.input, reads[node.input])
        made = compute({})
        if node.op == "BatchNormalization" and not bool(self._means[node.output][0].isnan().any()):
            shift = self._means[node.output][0]
            self._largest = max(self._largest, float(shift.abs().max()))
            made[0].copy_(shift.expand_as(made[0]))
        return made

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
