"""Absorbing constants: what removed channels add to the next layer on average moves into its bias.

A channel that a criterion finds unimportant still emits a nearly constant value (relu(beta) when gamma is near 0), and
the layers behind it were trained with that constant there. The idea is known from pruning with bias compensation
(Ye et al. 2018, "Rethinking the smaller-norm-less-informative assumption"); the means here come from batch norm's own
statistics, or from calibration data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from irtool.channels.labels import Labels
from irtool.ir.graph import Node
from irtool.ops.properties import LAYERS, SUMS_CHANNELS, WINDOWED
from irtool.ops.rules.context import expand
from irtool.ops.rules.opaque import short_name
from irtool.pruning.absorb.bias import calls_of
from irtool.pruning.absorb.contribution import channel_axis, gain, has_plain_window, shares, weight_of
from irtool.pruning.absorb.measure import calibrate
from irtool.pruning.absorb.moments import expectations


@dataclass
class Absorption:
    """The constants to add, and where.

    Attributes:
        biases: for a layer's name, what each original output channel gains, float64, shape (outputs,). A layer that is called
            several times is named by its first call.
        calls: for the same names, the names of all calls.
        fills: for every call, the mean that each removed input channel was taken to have, float64, of the input's rank; 0 for others.
        unknown: layers with removed inputs whose mean nothing tells: those were dropped.
        left: operators with removed inputs that have no bias to add to, or none that is understood: those were dropped.
        padded: layers with zero padding, where the constant is right on average over the image, not at each position.
        averaged: layers whose constants differ between positions or calls; what is added is the mean.
    """

    biases: dict[str, Tensor] = field(default_factory=dict)
    calls: dict[str, tuple[str, ...]] = field(default_factory=dict)
    fills: dict[str, Tensor] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    padded: list[str] = field(default_factory=list)
    averaged: list[str] = field(default_factory=list)


def measured_means(labels: Labels, batches: Iterable[Any]) -> dict[str, Tensor]:
    """The means of what every layer reads that could take up constants, by its name: `absorption` picks those that it needs."""
    able = [node for node in labels.graph.nodes if node.op in LAYERS and not node.input.is_param and _takes_up(node, labels)]
    return calibrate(labels, able, batches)


def absorption(labels: Labels, keep: NDArray[np.bool_], calibration: Iterable[Any] | None = None, *,
               means: Mapping[str, Tensor] | None = None) -> Absorption:  # fmt: skip
    """Work out, for every convolution and linear layer that loses inputs, what those inputs add on average.

    Args:
        labels: the first walk over the original graph.
        keep: whether each label stays, bool, shape (labels,).
        calibration: batches of inputs; where given, means are measured, else batch norm's statistics tell.
        means: by a layer's name, if they were measured before.
    """
    stays = torch.from_numpy(keep)
    losing = [node for node in labels.graph.nodes if _loses_inputs(node, labels, stays)]
    taking = {node.name: node for node in losing if _takes_up(node, labels)}
    if means is not None:
        pass
    elif calibration is not None:
        means = calibrate(labels, taking.values(), calibration)
    else:
        known = expectations(labels.graph) if taking else {}
        means = {name: known[node.input][0] for name, node in taking.items()}
    found, done = Absorption(), set[str]()
    for node in losing:
        calls = calls_of(labels.graph, node) if node.name in taking else ()
        if not calls or any(call.name not in taking for call in calls):
            found.left.append(node.location)
        elif node.name not in done:
            done.update(call.name for call in calls)
            _absorb(calls, labels, [_removed(call, labels, stays, means.get(call.name)) for call in calls], found)
    return found


def _loses_inputs(node: Node, labels: Labels, keep: Tensor) -> bool:
    """Whether removed channels flow in and end here."""
    summed = node.op == "Reduce" and short_name(node.callee) == "sum" and labels.decisions.get((node.name, "alone"))
    if (node.op not in SUMS_CHANNELS and not summed) or labels.decisions.get((node.name, "depthwise")) or not keep.numel():
        return False
    flowing = next((value for value in node.inputs if not value.is_param), None)
    if flowing is None:
        return False
    arriving = torch.cat([part.reshape(-1) for part in labels.parts(flowing)])
    gone = arriving[(arriving >= 0) & ~keep[arriving]]
    if not gone.numel():
        return False
    leaving = torch.cat([part.reshape(-1) for output in node.outputs for part in labels.parts(output)])
    return not bool(torch.isin(gone, leaving).all())


def _takes_up(node: Node, labels: Labels) -> bool:
    """Whether it is a layer of the plain form: a float weight that is a parameter, channels along one axis, a place for a bias."""
    weight = weight_of(node) if node.op in LAYERS else None
    if weight is None or weight.data is None or not weight.data.is_floating_point() or node.input.is_param:
        return False
    own = labels.of(node.input)
    plain = own.numel() == own.shape[channel_axis(node, node.input)] and len(labels.parts(node.input)) == 1
    product = node.op == "MatMul" and (len(weight.sizes) != 2 or len(node.inputs) != 2)
    return plain and not product and has_plain_window(node)


def _removed(node: Node, labels: Labels, keep: Tensor, mean: Tensor | None) -> tuple[Tensor, bool]:
    """The mean of each input channel, shape (inputs,), 0 for those that stay, NaN where unknown; whether positions differ."""
    own, axis = labels.of(node.input), channel_axis(node, node.input)
    size = node.input.sizes[axis]
    gone = expand(((own >= 0) & ~keep[own]).reshape(-1), [size])
    if mean is None or mean.dim() != own.dim():
        return torch.where(gone, torch.nan, torch.zeros(size, dtype=torch.float64)), False
    table = mean.movedim(axis, 0).reshape(mean.shape[axis], -1)
    differ = (table.amax(1) - table.amin(1)).expand(size)[gone]
    return torch.where(gone, table.mean(1).expand(size), 0.0), bool((differ.nan_to_num() > 1e-9 * table.abs().nan_to_num().amax()).any())


def _absorb(calls: Sequence[Node], labels: Labels, removed: Sequence[tuple[Tensor, bool]], found: Absorption) -> None:
    """One bias serves all calls of a layer: it gains the mean of what each of them lost, which is all of it where they agree."""
    first = calls[0]
    means = torch.stack([mean for mean, _ in removed])
    unknown = means.isnan().any(0)
    if bool(unknown.any()):
        found.unknown.append(first.location)
    means = torch.where(unknown, 0.0, means)
    if not bool(means.any()):
        return
    counted = [shares(call) for call in calls]
    gains = torch.stack([gain(call, mean, share) for call, mean, share in zip(calls, means, counted, strict=True)])
    found.biases[first.name], found.calls[first.name] = gains.mean(0), tuple(call.name for call in calls)
    for call, mean in zip(calls, means, strict=True):
        axis = channel_axis(call, call.input)
        found.fills[call.name] = mean.reshape([-1 if d == axis else 1 for d in range(len(call.input.sizes))])
    strided = first.op == "ConvTranspose" and any(_strides(first))
    if any(differ for _, differ in removed) or strided or not bool(torch.allclose(gains, gains[:1].expand_as(gains), 1e-9, 1e-12)):
        found.averaged.append(first.location)
    if first.op in WINDOWED and not strided and any(bool((share < 1).any()) for share in counted):
        found.padded.append(first.location)


def _strides(node: Node) -> list[bool]:
    return [step > 1 for step in node.attrs["strides"]]
