"""Grouped and depthwise convolutions, shuffles, cheap copies."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from structures.case import Head, case, cbr


class Ghost(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.outputs, inner = outputs, outputs // 2
        self.primary, self.cheap = cbr(inputs, inner, 1), cbr(inner, inner, 3, groups=inner)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.primary(x)
        return torch.cat([x1, self.cheap(x1)], dim=1)[:, : self.outputs, :, :]


@case("ghostnet", removed=0.5)
class GhostNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.head = cbr(3, 8), Ghost(8, 16), Ghost(16, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.two(self.one(x)))


def shuffle(x: Tensor, groups: int) -> Tensor:
    b, c, h, w = x.size()
    return torch.transpose(x.view(b, groups, c // groups, h, w), 1, 2).contiguous().view(b, -1, h, w)


class ShuffleUnit(nn.Module):
    """ShuffleNet v1: grouped 1x1, shuffle, depthwise, grouped 1x1; added, or concatenated to the pooled input."""

    def __init__(self, inputs: int, outputs: int, groups: int, stride: int) -> None:
        super().__init__()
        self.groups, self.stride = groups, stride
        own = outputs - inputs if stride == 2 else outputs
        self.reduce = cbr(inputs, 8, 1, groups=groups)
        self.depth, self.grow = cbr(8, 8, 3, stride, groups=8, act=False), cbr(8, own, 1, groups=groups, act=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.grow(self.depth(shuffle(self.reduce(x), self.groups)))
        if self.stride == 2:
            return F.relu(torch.cat((F.avg_pool2d(x, 3, 2, 1), y), 1))
        return F.relu(x + y)


@case("shufflenet_v1", removed=0.55, aligned=False)
class ShuffleNetV1(nn.Sequential):
    def __init__(self, groups: int = 2) -> None:
        super().__init__(cbr(3, 8), ShuffleUnit(8, 16, groups, 2), ShuffleUnit(16, 16, groups, 1), ShuffleUnit(16, 16, groups, 1), Head(16))


@case("shufflenet_v1_g4", removed=0.25, aligned=False)
class ShuffleNetV1G4(ShuffleNetV1):
    def __init__(self) -> None:
        super().__init__(4)


class ShuffleUnitV2(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(cbr(half, half, 1), cbr(half, half, 3, groups=half, act=False), cbr(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, dim=1)
        return shuffle(torch.cat((x1, self.branch(x2)), dim=1), 2)


@case("shufflenet_v2", removed=0.55, aligned=False)
class ShuffleNetV2(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(cbr(3, 16), ShuffleUnitV2(16), ShuffleUnitV2(16), cbr(16, 16, 1), ShuffleUnitV2(16), cbr(16, 24, 1), Head(24))


@case("shuffle_literal", removed=0.5, aligned=False)
class ShuffleLiteral(nn.Module):
    """Sizes as literals, the shuffle as a reshape, a permute and a flatten; and torch's own module."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = cbr(3, 24), cbr(24, 24, 1, groups=3), cbr(24, 24, 1, groups=3), Head(24)
        self.shuffle = nn.ChannelShuffle(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).reshape(2, 3, 8, 8, 8).permute(0, 2, 1, 3, 4).flatten(1, 2)
        return self.head(self.c(self.shuffle(self.b(x))))


@case("grouped_chain", removed=0.6, aligned=False)
class GroupedChain(nn.Sequential):
    """ResNeXt without a residual: groups of 4, then of 2, then of 8."""

    def __init__(self) -> None:
        super().__init__(cbr(3, 16), cbr(16, 16, groups=4), cbr(16, 16, groups=2), cbr(16, 32, groups=8), cbr(32, 16, 1), Head(16))


@case("resnext", removed=0.65, aligned=False)
class ResNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = cbr(3, 16), Head(16)
        self.blocks = nn.ModuleList(nn.Sequential(cbr(16, 16, 1), cbr(16, 16, groups=4), cbr(16, 16, 1, act=False)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = F.relu(x + block(x))
        return self.head(x)


@case("multiplier_2", removed=0.55, aligned=False)
class Multiplier2(nn.Sequential):
    """Depthwise convolutions with two outputs a channel, and their transpose."""

    def __init__(self) -> None:
        super().__init__(
            cbr(3, 8),
            cbr(8, 16, groups=8),
            cbr(16, 32, groups=16),
            cbr(32, 16, 1),
            nn.ConvTranspose2d(16, 16, 2, 2, groups=16),
            nn.ReLU(),
            Head(16),
        )


@case("grouped_transposed", removed=0.55, aligned=False)
class GroupedTransposed(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            cbr(3, 16, stride=2),
            nn.ConvTranspose2d(16, 8, 2, 2, groups=4),
            nn.BatchNorm2d(8),
            nn.ConvTranspose2d(8, 12, 3, groups=2),
            cbr(12, 8),
            Head(8),
        )


@case("inverted_residual", removed=0.55)
class InvertedResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = cbr(3, 8), Head(8)
        self.blocks = nn.ModuleList(
            nn.Sequential(cbr(8, 24, 1), cbr(24, 24, groups=24), nn.Hardswish(), cbr(24, 8, 1, act=False)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@case("mixconv", removed=0.5, aligned=False)
class MixConv(nn.Module):
    """Unequal splits, a depthwise convolution of another size for each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.sizes = cbr(3, 16), [3, 5, 8]
        self.parts = nn.ModuleList(nn.Conv2d(n, n, k, padding=k // 2, groups=n) for n, k in zip(self.sizes, (1, 3, 5), strict=True))
        self.point, self.head = cbr(16, 12, 1), Head(12)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(self.stem(x), self.sizes, dim=1)
        return self.head(self.point(torch.cat([part(p) for part, p in zip(self.parts, parts, strict=True)], 1)))
