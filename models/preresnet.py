"""The pre-activation bottleneck ResNet for 32x32 images, as network slimming prunes it (BN, selection, ReLU, conv)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from irtool.models.construction import initialise, output_layer, scaled

EXPANSION = 4
"""Output channels of a bottleneck block, in multiples of its planes (He et al., 2016, arXiv:1603.05027)."""


class ChannelSelection(nn.Module):
    """Pass on the channels whose entry in `indexes` is not zero; the identity while none is zero.

    A residual stream is read by many blocks, so none of them can slice it. Each selects what it needs instead.

    The choice is made when `indexes` is loaded or `keep` is called, not at every forward: the traced graph has no
    branch on data, a net that selects everything has no node here at all, and a GPU is never waited for. Writing into
    `indexes` by hand has no effect; call `keep`.

    Args:
        channels: the width of the stream.
    """

    indexes: Tensor  # float32 of zeros and ones, shape (channels,): the published state dict's form
    positions: Tensor | None  # int64, the kept channels in ascending order; derived, so not in the state dict

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("indexes", torch.ones(channels))
        self.register_buffer("positions", None, persistent=False)
        self.register_load_state_dict_post_hook(_read_indexes)

    def keep(self, indexes: Tensor) -> None:
        """Select the channels where `indexes`, of shape (channels,), is not zero.

        Raises:
            ValueError: the shape differs, or no channel would be left.
        """
        if indexes.shape != self.indexes.shape:
            raise ValueError(f"indexes has shape {tuple(indexes.shape)}. Give one entry for each of the {len(self.indexes)} channels.")
        if not indexes.count_nonzero():
            raise ValueError("indexes keeps no channel. At least one entry must not be zero.")
        self.indexes.copy_(indexes)
        _read_indexes(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, ...) to (N, kept, ...)."""
        return x if self.positions is None else x.index_select(1, self.positions)


def _read_indexes(selection: ChannelSelection, _incompatible_keys: Any = None) -> None:
    kept = selection.indexes.nonzero().flatten()
    selection.positions = None if len(kept) == len(selection.indexes) else kept


class Bottleneck(nn.Module):
    """BN, selection, ReLU, 1x1; BN, ReLU, 3x3; BN, ReLU, 1x1; plus the block's raw input.

    Args:
        channels: the width of the stream that comes in.
        planes: the width inside; `EXPANSION` times as many go out.
        stride: of the 3x3 convolution, and of the shortcut.
    """

    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        out = planes * EXPANSION
        self.bn1 = nn.BatchNorm2d(channels)
        self.select = ChannelSelection(channels)
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, out, 1, bias=False)
        self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride=stride, bias=False)) if stride != 1 or channels != out else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, EXPANSION * planes, H / stride, W / stride), rounded up."""
        out = self.conv1(F.relu(self.select(self.bn1(x))))
        out = self.conv2(F.relu(self.bn2(out)))
        out = self.conv3(F.relu(self.bn3(out)))
        return out + (x if self.downsample is None else self.downsample(x))


class PreResNet(nn.Module):
    """The CIFAR ResNet of three stages; loads the state dicts of network slimming's authors and their followers.

    Args:
        depth: 9 n + 2 layers, for n blocks a stage: 11, 20, 29, 38, 47, 56, ..., 92, ..., 164.
        num_classes: the outputs.
        width: multiplies the 16, 32 and 64 planes of the stages, rounded.

    Raises:
        ValueError: a depth of another form, a width that leaves no channel, or no classes.
    """

    def __init__(self, depth: int, num_classes: int = 10, width: float = 1.0) -> None:
        super().__init__()
        if depth < 11 or (depth - 2) % 9:
            raise ValueError(f"PreResNet has no depth {depth}. Choose 9 n + 2 with n of 1 and more: 11, 20, 29, 38, 47, 56, ...")
        stem, *stages = (scaled(planes, width) for planes in (16, 16, 32, 64))
        blocks = (depth - 2) // 9
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.layer1 = _stage(stem, stages[0], blocks, stride=1)
        self.layer2 = _stage(stages[0] * EXPANSION, stages[1], blocks, stride=2)
        self.layer3 = _stage(stages[1] * EXPANSION, stages[2], blocks, stride=2)
        features = stages[2] * EXPANSION
        self.bn = nn.BatchNorm2d(features)
        self.select = ChannelSelection(features)
        # The published net averages 8x8 with a fixed window, which is the same for 32x32 images and fails for others.
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = output_layer(features, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) images to (N, num_classes) logits."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = F.relu(self.select(self.bn(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def _stage(channels: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    rest = (Bottleneck(planes * EXPANSION, planes, 1) for _ in range(blocks - 1))
    return nn.Sequential(Bottleneck(channels, planes, stride), *rest)
