"""Criteria that see data."""

from __future__ import annotations

import torch

from irtool.channels.groups import ChannelGroups
from irtool.pruning.criteria import Batches, Scores, criterion
from irtool.pruning.gates import gate_gradients


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
