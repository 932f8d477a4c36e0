"""What lies beside channels (weights of branches, masks, kernels, single channels) neither stops them nor is overlooked."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_nets import Middle, halved, small
from torch import Tensor, nn


def mixture(net: nn.Module, y: Tensor) -> Tensor:
    """Four candidates for each image, made by one wide layer."""
    weights = net.route(y.mean((2, 3))).softmax(1)
    return (net.wide(y).view(y.shape[0], 4, 16, 8, 8) * weights[:, :, None, None, None]).sum(1)


BRANCHES: dict[str, Middle] = {
    "shares": lambda net, y: (torch.stack([y, net.branch(y)], 1) * net.shares.softmax(0).view(1, 2, 1, 1, 1)).sum(1),
    "a weight a branch": lambda net, y: (torch.stack([y, net.branch(y)], 1) * net.weights).sum(1),
    "a mean of branches": lambda net, y: (torch.stack([y, net.branch(y)], 1) * net.weights).mean(1),
    "a weight a branch and channel": lambda net, y: (torch.stack([y, net.branch(y)], 1) * net.table).sum(1),
    "mixture": mixture,
}


@pytest.mark.parametrize("name", BRANCHES)
def test_weighted_branches_that_are_added_up(name: str) -> None:
    parts = {"branch": nn.Conv2d(16, 16, 1), "wide": nn.Conv2d(16, 64, 1), "route": nn.Linear(16, 4), "shares": nn.Parameter(torch.rand(2))}
    found, gone, _ = halved(
        small(BRANCHES[name], weights=nn.Parameter(torch.rand(1, 2, 1, 1, 1)), table=nn.Parameter(torch.rand(1, 2, 16, 1, 1)), **parts)
    )
    assert found.ok
    assert (gone, found.inexact) == (8, ())


SIZES: dict[str, Middle] = {
    "of the image": lambda net, y: net.same(y).flatten(2).unflatten(2, y.shape[-2:]),
    "of channels": lambda net, y: net.same(y).flatten(1).unflatten(1, y.shape[1:]),
    "of other channels": lambda net, y: net.wide(y).flatten(1).unflatten(1, (net.wide(y).relu().shape[1], 8, 8)),
    "of groups": lambda net, y: y.unflatten(1, (4, y.shape[1] // 4)).flatten(1, 2),
}


@pytest.mark.parametrize("name", SIZES)
def test_an_axis_is_split_in_computed_sizes(name: str) -> None:
    found, gone, reason = halved(small(SIZES[name], same=nn.Conv2d(16, 16, 1), wide=nn.Conv2d(16, 12, 1)))
    assert found.ok
    assert (gone, reason) == (8, "")


KERNELS: dict[str, Middle] = {
    "repeated for each channel": lambda net, y: F.conv2d(y, net.blur.repeat(y.size(1), 1, 1, 1), padding=1, groups=y.size(1)),
    "expanded for each channel": lambda net, y: F.conv2d(y, net.blur.expand(y.size(1), 1, 3, 3), padding=1, groups=y.size(1)),
    "expanded as written": lambda net, y: F.conv2d(y, net.blur.expand(16, -1, -1, -1), padding=1, groups=16),
    "two for each channel": lambda net, y: F.conv2d(y, net.blur.repeat(2 * y.size(1), 1, 1, 1), padding=1, groups=y.size(1)),
    "one tap": lambda net, y: F.conv2d(y, net.tap.repeat(y.size(1), 1, 1, 1), groups=y.size(1)),
    "as a parameter": lambda net, y: F.conv2d(y, net.learnt.expand(y.size(1), -1, -1, -1), padding=1, groups=y.size(1)),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_that_is_copied_for_each_channel(name: str) -> None:
    learnt = nn.Parameter(torch.rand(1, 1, 3, 3))
    found, gone, reason = halved(small(KERNELS[name], blur=torch.rand(1, 1, 3, 3), tap=torch.rand(1, 1, 1, 1), learnt=learnt))
    assert found.ok
    assert (gone, reason) == (8, "")
