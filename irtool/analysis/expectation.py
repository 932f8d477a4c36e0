"""What a channel is worth on average: means run through the graph beside the labels.

A batch norm says that its output has mean beta and variance gamma^2 over the data it was trained on; taken as normal,
that gives the mean after any activation (in closed form for ReLU). Where no batch norm speaks, the mean is unknown
(NaN), and calibration data can supply it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from irtool.analysis.labels import Labels
from irtool.ir.fx_graph import FxGraph
from irtool.ir.graph import Graph, Node, Value
from irtool.ir.modes import evaluating
from irtool.ir.onnx_graph import OnnxGraph
from irtool.ops.affine import computed_values
from irtool.ops.context import expand, on_axis
from irtool.ops.table import ELEMENTWISE
from irtool.ops.writes import written_through

Moments = tuple[Tensor, Tensor]
"""Mean and variance, float64, of the shape of the value's label tensor; NaN where unknown."""

_CARRY = frozenset({"Reshape", "Transpose", "Concat", "Split", "Slice", "Gather", "Expand", "Roll", "DepthToSpace", "SpaceToDepth", "ChannelShuffle", "Identity",
                    "Dropout", "StochasticDepth", "Stack", "Resize", "Pool", "Reduce", "Unfold"})  # fmt: skip
_KEEP_MEAN = frozenset({"mean", "amax", "amin", "max", "min", "dim"})  # ATen calls mean over axes `mean.dim`
_POINTS, _WEIGHTS = np.polynomial.hermite_e.hermegauss(33)


def expectations(labels: Labels) -> dict[Value, Moments]:
    """Mean and variance of every channel of every value, as far as batch norms tell.

    Pooling is taken to keep the mean, which is exact for averages and for channels that are constant.
    """
    found: dict[Value, Moments] = {}
    by_label: Tensor = torch.full((labels.count + 1, 2), math.nan, dtype=torch.float64)
    for node in labels.graph.nodes:
        for output in node.outputs:
            found[output] = _moments(node, output, labels, found, by_label)
    return found


def _moments(node: Node, output: Value, labels: Labels, found: dict[Value, Moments], by_label: Tensor) -> Moments:
    shape = labels.values[output].shape
    if written_through(output):
        return _unknown(shape), _unknown(shape)
    if node.op == "BatchNormalization":
        return _batchnorm(node, shape)
    if node.op == "ChannelSelect":
        index = node.operands["index"].data
        assert index is not None
        mean, var = found[node.input]
        full = (mean.numel() == node.input.sizes[1]) or mean.numel() == 1
        pick = [
            expand(t, [node.input.sizes[1] if d == 1 else 1 for d in range(t.dim())]).index_select(1, index.cpu())
            if full
            else _unknown(shape)
            for t in (mean, var)
        ]
        return pick[0].reshape(shape), pick[1].reshape(shape)
    if node.op in _CARRY and not (node.op == "Reduce" and node.callee.rsplit(".", 1)[-1] not in _KEEP_MEAN):
        return _carry(node, output, labels, found, by_label)
    if node.op == "Add":
        return _add(node, shape, found)
    if node.op in ELEMENTWISE and len(node.inputs) == 1 and node.input in found and found[node.input][0].shape == shape:
        return _activate(labels.graph, node, *found[node.input])
    return _unknown(shape), _unknown(shape)


def _unknown(shape: Sequence[int]) -> Tensor:
    return torch.full(tuple(shape), math.nan, dtype=torch.float64)


def _batchnorm(node: Node, shape: torch.Size) -> Moments:
    weight, bias = node.get("weight"), node.get("bias")
    size = node.input.sizes[1]
    if len(shape) < 2 or shape[1] != size or computed_values(node) is not None:
        return _unknown(shape), _unknown(shape)
    gamma = weight.data.double().cpu() if weight is not None and weight.data is not None else torch.ones(size, dtype=torch.float64)
    beta = bias.data.double().cpu() if bias is not None and bias.data is not None else torch.zeros(size, dtype=torch.float64)
    return on_axis(beta, 1, len(shape)), on_axis(gamma.square(), 1, len(shape))


def _carry(node: Node, output: Value, labels: Labels, found: dict[Value, Moments], by_label: Tensor) -> Moments:
    """Movement: whatever has the label has the moments. `by_label` is scratch space."""
    for value in node.inputs:
        if value in found:
            own = labels.values[value]
            by_label[own.reshape(-1), 0] = found[value][0].reshape(-1)
            by_label[own.reshape(-1), 1] = found[value][1].reshape(-1)
    by_label[-1] = math.nan
    picked = by_label[labels.values[output]]
    return picked[..., 0], picked[..., 1]


def _add(node: Node, shape: torch.Size, found: dict[Value, Moments]) -> Moments:
    if len(node.inputs) != 2 or any(value not in found or found[value][0].shape != shape for value in node.inputs):
        return _unknown(shape), _unknown(shape)
    (m1, v1), (m2, v2) = (found[value] for value in node.inputs)
    return m1 + m2, v1 + v2


def _activate(graph: Graph, node: Node, mean: Tensor, var: Tensor) -> Moments:
    """E[f(X)] and Var[f(X)] for X ~ N(mean, var): closed form for ReLU, Gauss-Hermite quadrature of the node itself otherwise."""
    std = var.sqrt()
    if node.op == "Relu":
        return _relu(mean, std)
    if "dim" in node.attrs or "attn_mask" in node.attrs:
        return _unknown(mean.shape), _unknown(mean.shape)
    points, weights = torch.from_numpy(_POINTS), torch.from_numpy(_WEIGHTS / math.sqrt(2 * math.pi))
    grid = mean[..., None] + std[..., None] * points
    function = _function(graph, node)
    if function is None:
        return _unknown(mean.shape), _unknown(mean.shape)
    values = function(grid)
    if not isinstance(values, Tensor) or values.shape != grid.shape or not values.is_floating_point():
        return _unknown(mean.shape), _unknown(mean.shape)
    first = (values * weights).sum(-1)
    return first, ((values - first[..., None]).square() * weights).sum(-1)


def _function(graph: Graph, node: Node) -> Any:
    """The node's operator as a function of one tensor, other arguments as they are; None if it has tensor arguments."""
    host = node.host
    if not isinstance(graph, FxGraph):
        return lambda x: _evaluated(graph, node, x)
    module = getattr(host.graph, "owning_module", None)
    if host.op == "call_module" and module is not None:
        layer = module.get_submodule(str(host.target))
        return None if any(True for _ in layer.parameters()) else lambda x: layer(x.clone())
    if len(host.all_input_nodes) > 1 or any(isinstance(arg, fx.Node) for arg in host.args[1:]):
        return None
    if host.op == "call_method":
        return lambda x: getattr(x.clone(), str(host.target))(*host.args[1:], **host.kwargs)
    return lambda x: host.target(x.clone(), *host.args[1:], **{k: v for k, v in host.kwargs.items() if k != "input"})


def _evaluated(graph: Graph, node: Node, x: Tensor) -> Tensor | None:
    try:
        return graph.evaluate(node, {node.input: x})[0]
    except Exception:  # the host's evaluator raises types of its own; a mean that it cannot tell is unknown
        return None


def _relu(mean: Tensor, std: Tensor) -> Moments:
    """E[max(X, 0)] = m Phi(m/s) + s phi(m/s); E[max(X, 0)^2] = (m^2 + s^2) Phi(m/s) + m s phi(m/s)."""
    safe = std.clamp_min(1e-30)
    ratio = mean / safe
    upper = 0.5 * torch.erfc(-ratio / math.sqrt(2))
    density = torch.exp(-0.5 * ratio.square()) / math.sqrt(2 * math.pi)
    first = mean * upper + safe * density
    second = (mean.square() + safe.square()) * upper + mean * safe * density
    return first, (second - first.square()).clamp_min(0)


class _Means(fx.Interpreter):
    """Means over data of what chosen layers read, taken when they read it: until then it may be written over.

    `wanted`: for each layer's host node, the values.
    """

    def __init__(self, graph: FxGraph, wanted: dict[fx.Node, list[Value]], labels: Labels) -> None:
        super().__init__(graph.module)
        self._wanted, self._labels, self._value_of = wanted, labels, graph.value_of
        self.sums: dict[Value, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        for value in self._wanted.get(n, ()):
            tensor = next((self.env[used] for used in n.all_input_nodes if self._value_of(used) is value), None)
            if isinstance(tensor, Tensor):
                mean = _mean(tensor, self._labels.values[value].shape)
                self.sums[value] = self.sums.get(value, torch.zeros_like(mean)) + mean
        return super().run_node(n)


def calibrate(labels: Labels, values: Iterable[Value], batches: Iterable[Any]) -> dict[Value, Tensor]:
    """The mean of each channel of some values over calibration batches (inputs of the graph), in eval mode."""
    graph = labels.graph
    if isinstance(graph, OnnxGraph):
        return _calibrate_onnx(labels, graph, [value for value in values if value.producer is not None], batches)
    assert isinstance(graph, FxGraph)
    wanted: dict[fx.Node, list[Value]] = {}
    for value in values:
        layer = next((node for node in value.uses if node.get("weight") is not None and node.input is value), None)
        if layer is not None and value not in wanted.get(layer.host, ()):
            wanted.setdefault(layer.host, []).append(value)
    interpreter, count = _Means(graph, wanted, labels), 0
    with evaluating(graph.module), torch.no_grad():
        for batch in batches:
            interpreter.run(*(batch if isinstance(batch, tuple | list) else (batch,)))
            count += 1
    return {value: total.cpu() / max(count, 1) for value, total in interpreter.sums.items()}


def _calibrate_onnx(labels: Labels, graph: OnnxGraph, values: Sequence[Value], batches: Iterable[Any]) -> dict[Value, Tensor]:
    sums: dict[Value, Tensor] = {}
    count = 0
    names = list(dict.fromkeys(value.name for value in values))
    for batch in batches:
        found = dict(zip(names, graph.run(*(batch if isinstance(batch, tuple | list) else (batch,)), values=names), strict=True))
        for value in dict.fromkeys(values):
            sums[value] = sums.get(value, torch.zeros(1, dtype=torch.float64)) + _mean(found[value.name], labels.values[value].shape)
        count += 1
    return {value: total / max(count, 1) for value, total in sums.items()}


def _mean(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """The mean over the axes that carry no channels."""
    axes = [axis for axis, size in enumerate(shape) if size == 1]
    return tensor.double().mean(axes, keepdim=True) if axes else tensor.double()
