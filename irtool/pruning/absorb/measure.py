"""Means measured on data: what chosen layers read, over calibration batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from irtool.channels.labels import Labels
from irtool.hosts.onnx.graph import OnnxGraph
from irtool.hosts.torch.graph import FxGraph
from irtool.ir.graph import Node, Value
from irtool.modes import evaluating


def calibrate(labels: Labels, layers: Iterable[Node], batches: Iterable[Any]) -> dict[str, Tensor]:
    """The mean of each channel that a layer reads over calibration batches (inputs of the graph), in eval mode; by the layer's name.

    Means have the shape of the input's labels.
    """
    graph = labels.graph
    if isinstance(graph, OnnxGraph):
        return _calibrate_onnx(labels, graph, [node for node in layers if node.input.producer is not None], batches)
    assert isinstance(graph, FxGraph)
    interpreter, count = _Means(graph, {node.host: node for node in layers}, labels), 0
    with evaluating(graph.module), torch.no_grad():
        for batch in batches:
            interpreter.run(*(batch if isinstance(batch, tuple | list) else (batch,)))
            count += 1
    return {name: total.cpu() / max(count, 1) for name, total in interpreter.sums.items()}


class _Means(fx.Interpreter):
    """Means of what layers read, taken when they read it: until then it may be written over."""

    def __init__(self, graph: FxGraph, layers: dict[fx.Node, Node], labels: Labels) -> None:
        super().__init__(graph.module)
        self._layers, self._labels, self._value_of = layers, labels, graph.value_of
        self.sums: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        layer = self._layers.get(n)
        if layer is not None:
            tensor = next((self.env[used] for used in n.all_input_nodes if self._value_of(used) is layer.input), None)
            if isinstance(tensor, Tensor):
                mean = _mean(tensor, self._labels.values[layer.input].shape)
                self.sums[layer.name] = self.sums.get(layer.name, torch.zeros_like(mean)) + mean
        return super().run_node(n)


def _calibrate_onnx(labels: Labels, graph: OnnxGraph, layers: Sequence[Node], batches: Iterable[Any]) -> dict[str, Tensor]:
    sums: dict[Value, Tensor] = {}
    count = 0
    values = list(dict.fromkeys(node.input for node in layers))
    for batch in batches:
        found = graph.run(*(batch if isinstance(batch, tuple | list) else (batch,)), values=[value.name for value in values])
        for value, tensor in zip(values, found, strict=True):
            sums[value] = sums.get(value, torch.zeros(1, dtype=torch.float64)) + _mean(tensor, labels.values[value].shape)
        count += 1
    return {node.name: sums[node.input] / max(count, 1) for node in layers if node.input in sums}


def _mean(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """The mean over the axes that carry no channels."""
    axes = [axis for axis, size in enumerate(shape) if size == 1]
    return tensor.double().mean(axes, keepdim=True) if axes else tensor.double()
