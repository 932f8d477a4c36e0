"""Absorbing constants: what removed channels add to the next layer on average moves into its bias.

A channel that a criterion finds unimportant still emits a nearly constant value (relu(beta) when gamma is near 0), and
the layers behind it were trained with that constant there. The idea is known from pruning with bias compensation
(Ye et al. 2018, "Rethinking the smaller-norm-less-informative assumption"); the means here come from batch norm's own
statistics, or from calibration data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from irtool.analysis.expectation import calibrate, expectations
from irtool.analysis.labels import Labels
from irtool.ir.graph import G, Graph, Node, Value
from irtool.ops.context import expand

SUPPORTED = frozenset({"Conv", "Gemm"})


@dataclass
class Absorption:
    """What is to be added where.

    Attributes:
        biases: for a contraction node's name, what each original output channel gains, float64, shape (outputs,).
        fills: for the same nodes, the mean that each input channel was taken to have, of its label shape; for the check.
        unknown: nodes with removed inputs whose mean nothing tells: those were dropped.
        padded: nodes with zero padding, where the constant is right on average over the image, not at each position.
    """

    biases: dict[str, Tensor] = field(default_factory=dict)
    fills: dict[str, Tensor] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    padded: list[str] = field(default_factory=list)


def absorption(labels: Labels, keep: NDArray[np.bool_], calibration: Iterable[Any] | None = None) -> Absorption:
    """Work out, for every convolution and linear layer that loses inputs, what those inputs add on average.

    Args:
        labels: the first walk over the original graph.
        keep: whether each label stays.
        calibration: batches of inputs; where given, means are measured, else batch norm's statistics tell.
    """
    stays = torch.from_numpy(keep)
    losing = [node for node in labels.graph.nodes if _loses_inputs(node, labels, stays)]
    means: Mapping[Value, Tensor]
    if calibration is not None:
        means = calibrate(labels, [node.input for node in losing], calibration)
    else:
        means = {value: mean for value, (mean, _) in expectations(labels).items()}
    found = Absorption()
    for node in losing:
        _absorb(node, labels, stays, means, found)
    return found


def _loses_inputs(node: Node, labels: Labels, keep: Tensor) -> bool:
    weight = node.get("weight")
    if (
        node.op not in SUPPORTED
        or weight is None
        or weight.data is None
        or node.input.is_param
        or labels.decisions.get((node.name, "depthwise"))
    ):
        return False
    own = labels.of(node.input)
    return bool((~keep[own[own >= 0]]).any())


def _absorb(node: Node, labels: Labels, keep: Tensor, means: Mapping[Value, Tensor], found: Absorption) -> None:
    own = labels.of(node.input)
    axis = 1 if node.op == "Conv" else own.dim() - 1
    gone = (own >= 0) & ~keep[own]
    mean = means.get(node.input)
    weight = node.operands["weight"].data
    quantised = weight is None or not weight.is_floating_point()
    if (
        quantised
        or mean is None
        or mean.shape != own.shape
        or own.numel() != own.shape[axis]
        or isinstance(node.attrs.get("padding", 0), str)
    ):
        found.unknown.append(node.location)
        return
    known = torch.where(gone & ~torch.isnan(mean), mean, 0.0)
    if bool(torch.isnan(mean[gone]).any()):
        found.unknown.append(node.location)
        if not bool(known.any()):
            return
    vector = expand(known, [node.input.sizes[axis] if d == axis else 1 for d in range(known.dim())]).reshape(-1)
    found.biases[node.name] = _gain(node, vector)
    found.fills[node.name] = known
    padding = node.attrs.get("padding", 0)
    if any((padding,) if isinstance(padding, int) else padding):
        found.padded.append(node.location)


def _gain(node: Node, mean: Tensor) -> Tensor:
    """What each output gains: the sum over inputs and taps of weight times mean, (O,).

    A tap that falls on zero padding adds nothing, so each tap counts for the share of output positions where it falls
    inside the image: the mean over the positions of the example's size. Without padding that share is 1.
    """
    weight = node.operands["weight"].data
    assert weight is not None
    groups = int(node.attrs.get("groups") or 1)
    taps = weight.double().cpu()
    if _output_axis(node) == 1:
        taps = taps.T
    if taps.dim() > 2:
        taps = (taps * _inside(node, tuple(taps.shape[2:]))).flatten(2).sum(2)
    blocks = taps.reshape(groups, -1, taps.shape[1])
    return torch.einsum("goi,gi->go", blocks, mean.reshape(groups, -1)).reshape(-1)


def _inside(node: Node, kernel: tuple[int, ...]) -> Tensor:
    """For each tap of a kernel, the share of output positions at which it reads the image rather than its padding."""
    share = torch.ones(kernel, dtype=torch.float64)
    padding, stride, dilation = (
        _per_axis(node.attrs.get(name, default), len(kernel)) for name, default in (("padding", 0), ("stride", 1), ("dilation", 1))
    )
    for axis, taps in enumerate(kernel):
        size, positions = node.input.sizes[2 + axis], torch.arange(node.output.sizes[2 + axis])
        read = positions[None] * stride[axis] + torch.arange(taps)[:, None] * dilation[axis] - padding[axis]
        inside = ((read >= 0) & (read < size)).double().mean(1)
        share = share * inside.reshape([-1 if d == axis else 1 for d in range(len(kernel))])
    return share


def _per_axis(value: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else tuple(value) * (axes if len(value) == 1 else 1)


def add_biases(graph: G, labels: Labels, keep: NDArray[np.bool_], gains: Mapping[str, Tensor]) -> G:
    """Add to the biases of a sliced graph, in place, what its layers lost; layers without a bias get one.

    Returns the graph read anew, since a new bias is a new parameter.
    """
    sources = {node.name: node for node in labels.graph.nodes}
    by_name = {node.name: node for node in graph.nodes}
    for name, gain in gains.items():
        weight = sources[name].operands["weight"]
        own = labels.axes[weight.name, _output_axis(sources[name])]
        if int(own[0]) >= 0:
            # Output channels keep their order: only reading a parameter can reorder it, and outputs are made, not read.
            gain = gain[torch.from_numpy(keep)[own]]
        _add_bias(graph, by_name[name], gain)
    graph.tidied()
    return graph


def _output_axis(node: Node) -> int:
    return 1 if node.op == "Gemm" and node.attrs.get("transposed") else 0


def _add_bias(graph: Graph, node: Node, gain: Tensor) -> None:
    bias, weight = node.get("bias"), node.operands["weight"].data
    assert weight is not None
    if bias is not None and bias.data is not None:
        graph.set_param(bias.name, (bias.data.double() + gain.to(bias.data.device)).to(bias.data.dtype))
        return
    graph.give_bias(node, gain.to(weight), f"absorbed_{node.name}")
