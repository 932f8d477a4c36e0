"""Criteria that compare a layer's filters with each other."""

from __future__ import annotations

import numpy as np
import torch

from irtool.channels.groups import ChannelGroups
from irtool.pruning.criteria.criteria import Scores, criterion, filter_scores


@criterion("fpgm")
def fpgm(groups: ChannelGroups, seed: int) -> Scores:
    """The sum of a filter's distances to all others of its layer, over the layer's mean: what lies in the middle can be replaced.

    He et al. 2019, "Filter pruning via geometric median for deep convolutional neural networks acceleration".
    """
    return filter_scores(groups, _distances)


@criterion("lamp")
def lamp(groups: ChannelGroups, seed: int) -> Scores:
    """A filter's squared norm over the sum of those of its layer that are no smaller: the largest of each layer scores 1.

    Lee et al. 2021, "Layer-adaptive sparsity for the magnitude-based pruning", for filters in place of single weights.
    """
    return filter_scores(groups, _shares_of_the_rest, relative=False)


def _distances(rows: torch.Tensor) -> Scores:
    table = rows.detach().double()
    found: Scores = torch.cdist(table, table, compute_mode="donot_use_mm_for_euclid_dist").sum(1).cpu().numpy()
    return found


def _shares_of_the_rest(rows: torch.Tensor) -> Scores:
    squares = rows.detach().double().square().sum(1).cpu().numpy()
    order = np.argsort(squares, kind="stable")
    rest = squares[order][::-1].cumsum()[::-1]
    found = np.empty_like(squares)
    found[order] = squares[order] / np.maximum(rest, 1e-300)
    return found
