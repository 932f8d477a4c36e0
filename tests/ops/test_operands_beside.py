"""Operands beside channels (weights of branches, masks, kernels, single channels) neither stop them nor are overlooked."""

from __future__ import annotations

import sys

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


SINGLE: dict[str, Middle] = {
    "a roll by one": lambda net, y: torch.cat([y[:, 1:], y[:, :1]], 1),
    "split in one and the rest": lambda net, y: torch.cat(y.split([1, 15], 1)[::-1], 1),
    "split with a rest of one": lambda net, y: torch.cat(y.split(5, 1), 1),
    "one channel by number": lambda net, y: torch.cat([y, y[:, 3].unsqueeze(1)], 1),
}


@pytest.mark.parametrize("name", SINGLE)
def test_a_part_of_one_channel_keeps_it_alone(name: str) -> None:
    found, gone, reason = halved(small(SINGLE[name]))
    assert found.ok
    assert (gone in (7, 8), reason) == (True, "")


BITS = torch.arange(16).view(1, 16, 1, 1) % 3 > 0
MASKS: dict[str, Middle] = {
    "bool": lambda net, y: y * net.mask,
    "masked_fill": lambda net, y: y.masked_fill(net.mask, 0.5),
    "where": lambda net, y: torch.where(net.mask, y, torch.tensor(1.0)),
    "not": lambda net, y: y * ~net.mask,
    "as numbers": lambda net, y: y * net.mask.float(),
    "in a row": lambda net, y: y * net.row.view(1, -1, 1, 1),
    "int": lambda net, y: y * net.steps,
    "of one map": lambda net, y: y * net.maps,
    "in a program": lambda net, y: y * BITS,
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_of_channels_is_sliced_with_them(name: str) -> None:
    parts = {"mask": BITS, "row": BITS.flatten(), "steps": torch.arange(16).view(1, 16, 1, 1), "maps": torch.rand(1, 16, 8, 8) > 0.3}
    found, gone, reason = halved(small(MASKS[name], **parts))
    assert found.ok
    assert (gone, reason) == (8, "")


@pytest.mark.parametrize("mask", [torch.arange(16), torch.arange(16) > 3])
def test_numbers_that_are_places_among_channels_too_are_not_sliced(mask: Tensor) -> None:
    def middle(net: nn.Module, y: Tensor) -> Tensor:
        y = y.permute(0, 2, 3, 1)
        return torch.cat([y * net.mask, y[..., net.mask]], 3).permute(0, 3, 1, 2)

    found, gone, reason = halved(small(middle, mask=mask))
    assert found.ok
    assert gone == 0
    assert "meets a value whose channels cannot be removed" in reason


CHOSEN: dict[str, Middle] = {
    "from the end": lambda net, y: y[:, torch.tensor([-1, -2, 0, 5])],
    "from the end, by a buffer": lambda net, y: y[:, net.order],
    "all from the end": lambda net, y: y[:, torch.arange(-16, 0)],
    "every other": lambda net, y: torch.ops.aten.slice.Tensor(y, 1, 0, sys.maxsize, 2),
    "every third": lambda net, y: torch.ops.aten.slice.Tensor(y, 1, 1, 14, 3),
    "every third, in brackets": lambda net, y: y[:, 1:14:3],
    "from before the beginning": lambda net, y: torch.ops.aten.slice.Tensor(y, 1, -100, 12),
}


@pytest.mark.parametrize("name", CHOSEN)
def test_channels_chosen_by_number(name: str) -> None:
    found, gone, reason = halved(small(CHOSEN[name], order=torch.tensor([-1, 3, -16, 7])))
    assert found.ok
    assert (gone >= 7, reason) == (True, "")
