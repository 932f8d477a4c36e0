"""Criteria that see data."""

from __future__ import annotations

import torch

from irtool.channels.groups import ChannelGroups
from irtool.pruning.criteria.criteria import Batches, Scores, criterion
from irtool.pruning.criteria.gates import gate_gradients
from irtool.pruning.criteria.read_values import read_values, reader_energy


@criterion("fisher", reads="gradients")
def fisher(groups: ChannelGroups, seed: int, batches: Batches) -> Scores:
    """Half the mean squared gradient of a channel's gate: what switching it to its mean costs, to second order.

    `F = 1/2 E[(sum over readers and positions of g * (a - mean))^2]` with a the reader's input and g the gradient of the loss there;
    labels are drawn from the net's own softmax, so that E is the Fisher information. A group's readers are summed before the square
    (Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning"; Liu et al. 2021, "Group Fisher pruning").
    """
    total, images = torch.zeros(groups.count, dtype=torch.float64), 0
    for gradients in gate_gradients(groups, batches, seed, centred=True):
        total += gradients.square().sum(0)
        images += len(gradients)
    scores: Scores = (total / (2 * max(images, 1))).numpy()[groups.group]
    return scores


@criterion("taylor", reads="gradients")
def taylor(groups: ChannelGroups, seed: int, batches: Batches) -> Scores:
    """`E|sum over readers and positions of g * a|`: the first-order change of the loss when a channel is switched off.

    Molchanov et al. 2017, "Pruning convolutional neural networks for resource efficient inference"; the loss is that of `fisher`.
    """
    total, images = torch.zeros(groups.count, dtype=torch.float64), 0
    for gradients in gate_gradients(groups, batches, seed, centred=False):
        total += gradients.abs().sum(0)
        images += len(gradients)
    scores: Scores = (total / max(images, 1)).numpy()[groups.group]
    return scores


@criterion("hessian", reads="gradients")
def hessian(groups: ChannelGroups, seed: int, batches: Batches) -> Scores:
    """Half the sum of curvature times value squared over every entry that a channel is read as: what removing it costs by a Hessian
    that is taken to be diagonal.

    `1/2 E[sum over readers and positions of (g * a)^2]`, the squared gradients of `fisher`'s loss standing for the curvature: Optimal
    Brain Damage (LeCun, Denker and Solla 1990) with values in place of weights. `fisher` keeps the cross terms that this leaves out.
    """
    total, images = torch.zeros(groups.count, dtype=torch.float64), 0
    for squares in gate_gradients(groups, batches, seed, centred=False, squared=True):
        total += squares.sum(0)
        images += len(squares)
    scores: Scores = (total / (2 * max(images, 1))).numpy()[groups.group]
    return scores


@criterion("activation", reads="activations")
def activation(groups: ChannelGroups, seed: int, batches: Batches) -> Scores:
    """The part of its readers' outputs that varies with a channel: `sum over readers of var(a_c) |W_c|^2 / sum over c of the same`.

    It needs forward runs alone, so that it is the default for data on ONNX graphs. Wanda (Sun et al. 2023) by channels, with the
    variance in place of the square, since means are absorbed.
    """
    total, seen = torch.zeros(groups.count, dtype=torch.float64), torch.zeros(groups.count, dtype=torch.bool)
    group = torch.from_numpy(groups.group)
    for reading, found in read_values(groups, batches):
        part = found.variance * reader_energy(groups.labels, reading)
        ends = reading.labels.reshape(-1) >= 0
        places = group[reading.labels.reshape(-1)[ends]]
        total.index_add_(0, places, part[ends] / part.sum().clamp_min(1e-300))
        seen[places] = True
    scores: Scores = torch.where(seen, total, torch.nan).numpy()[groups.group]
    return scores


@criterion("apoz", reads="activations")
def apoz(groups: ChannelGroups, seed: int, batches: Batches) -> Scores:
    """The share of a channel's values that are not zero where it is read: 1 less the average percentage of zeros.

    Hu et al. 2016, "Network trimming". Behind activations without zeros it says nothing and leaves all channels equal.
    """
    total, times = torch.zeros(groups.count, dtype=torch.float64), torch.zeros(groups.count, dtype=torch.float64)
    group = torch.from_numpy(groups.group)
    for reading, found in read_values(groups, batches):
        ends = reading.labels.reshape(-1) >= 0
        places = group[reading.labels.reshape(-1)[ends]]
        total.index_add_(0, places, found.alive[ends])
        times.index_add_(0, places, torch.ones(len(places), dtype=torch.float64))
    scores: Scores = (total / times).numpy()[groups.group]  # NaN where nothing reads it
    return scores
