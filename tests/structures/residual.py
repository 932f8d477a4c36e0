"""Streams that additions and concatenations join."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from structures.case import Head, case, cbr


class Bottleneck(nn.Module):
    def __init__(self, channels: int, inner: int, shortcut: bool = True) -> None:
        super().__init__()
        self.cv1, self.cv2, self.shortcut = cbr(channels, inner), cbr(inner, channels), shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.shortcut else y


class BasicA(nn.Module):
    """A CIFAR ResNet block with the parameter-free shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = cbr(inputs, outputs, stride=stride), cbr(outputs, outputs, act=False)
        self.extra = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        if self.extra:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra, self.extra), "constant", 0)
        return F.relu(x + y)


@case("option_a", removed=0.7)
class OptionA(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(cbr(3, 8), BasicA(8, 8, 1), BasicA(8, 16, 2), BasicA(16, 16, 1), BasicA(16, 32, 2), Head(32))


@case("resnet_projection", removed=0.65)
class ResNetProjection(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = cbr(3, 8), nn.Sequential(cbr(8, 8), cbr(8, 16, stride=2, act=False))
        self.down, self.head = cbr(8, 16, 1, 2, act=False), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu_(self.block(x).add_(self.down(x)))
        return self.head(x)


@case("preactivation", removed=0.65)
class PreActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.blocks = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1)) for _ in range(3))  # fmt: skip
        self.bn, self.head = nn.BatchNorm2d(16), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.bn(x).relu())


@case("densenet", removed=0.65)
class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(8 + 4 * i),
                nn.ReLU(),
                nn.Conv2d(8 + 4 * i, 12, 1),
                nn.BatchNorm2d(12),
                nn.ReLU(),
                nn.Conv2d(12, 4, 3, padding=1),
            )
            for i in range(4)
        )
        self.transition = nn.Sequential(nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 12, 1), nn.AvgPool2d(2))
        self.head = Head(12)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.head(self.transition(torch.cat(features, dim=1)))


class RepBranches(nn.Module):
    """RepVGG before its merge: 3x3, 1x1 and identity, each with a batch norm; MobileOne has several 3x3."""

    def __init__(self, inputs: int, outputs: int, copies: int, groups: int = 1) -> None:
        super().__init__()
        self.convs = nn.ModuleList(cbr(inputs, outputs, 3, groups=groups, act=False) for _ in range(copies))
        self.scale = cbr(inputs, outputs, 1, groups=groups, act=False)
        self.skip = nn.BatchNorm2d(inputs) if inputs == outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.scale(x)
        if self.skip is not None:
            y = y + self.skip(x)
        for conv in self.convs:
            y += conv(x)
        return F.relu(y)


@case("repvgg", removed=0.7)
class RepVGG(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            RepBranches(3, 8, 1), RepBranches(8, 8, 1), RepBranches(8, 16, 1), nn.MaxPool2d(2), RepBranches(16, 16, 1), Head(16)
        )


@case("mobileone", removed=0.65)
class MobileOne(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            cbr(3, 8),
            RepBranches(8, 8, 3, groups=8),
            RepBranches(8, 16, 3),
            RepBranches(16, 16, 3, groups=16),
            RepBranches(16, 16, 3),
            Head(16),
        )


@case("c2f", removed=0.7)
class C2f(nn.Module):
    """YOLOv8's block: chunk, a chain of bottlenecks, concat."""

    def __init__(self, shortcut: bool = True) -> None:
        super().__init__()
        self.stem, self.cv1 = cbr(3, 8), cbr(8, 16, 1)
        self.m = nn.ModuleList(Bottleneck(8, 8, shortcut) for _ in range(2))
        self.cv2, self.head = cbr(32, 16, 1), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(self.stem(x)).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.head(self.cv2(torch.cat(y, 1)))


@case("c2f_split", removed=0.7)
class C2fSplit(C2f):
    def __init__(self) -> None:
        super().__init__(shortcut=False)

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(self.stem(x)).split((8, 8), 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.head(self.cv2(torch.cat(y, 1)))


@case("csp_spp", removed=0.65)
class CspSpp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = cbr(3, 16), cbr(16, 8, 1), cbr(16, 8, 1)
        self.m, self.join = nn.Sequential(Bottleneck(8, 8), Bottleneck(8, 8)), cbr(16, 16, 1)
        self.pools = nn.ModuleList(nn.MaxPool2d(k, 1, k // 2) for k in (3, 5))
        self.spp, self.pool, self.sppf, self.head = cbr(48, 16, 1), nn.MaxPool2d(3, 1, 1), cbr(48, 8, 1), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.join(torch.cat((self.m(self.left(x)), self.right(x)), dim=1))
        x = self.spp(torch.cat([x, *(pool(x) for pool in self.pools)], 1))
        y = self.pool(x)
        return self.head(self.sppf(torch.cat([x, y, self.pool(y)], 1)))


@case("res2net", removed=0.6)
class Res2Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1 = cbr(3, 16), cbr(16, 16, 1)
        self.convs = nn.ModuleList(cbr(4, 4) for _ in range(3))
        self.conv3, self.head = cbr(16, 16, 1, act=False), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        parts = torch.split(self.conv1(x), 4, 1)
        found = [self.convs[0](parts[0])]
        for i in range(1, 3):
            found.append(self.convs[i](found[-1] + parts[i]))
        return self.head(F.relu(self.conv3(torch.cat([*found, parts[3]], 1)) + x))


@case("inception", removed=0.6)
class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.b1, self.b2 = cbr(3, 12), cbr(12, 8, 1), nn.Sequential(cbr(12, 6, 1), cbr(6, 8))
        self.b3, self.b3a = cbr(12, 8, 1), nn.Conv2d(8, 6, (1, 3), padding=(0, 1))
        self.b3b, self.b4, self.head = nn.Conv2d(8, 6, (3, 1), padding=(1, 0)), cbr(12, 4, 1), Head(32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.b3(x)
        branch3 = torch.cat([self.b3a(y), self.b3b(y)], 1)
        branch4 = self.b4(F.avg_pool2d(x, kernel_size=3, stride=1, padding=1))
        return self.head(torch.cat([self.b1(x), self.b2(x), branch3, branch4], 1))


class Separable(nn.Module):
    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.depth = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
        self.point, self.bn = nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.point(self.depth(F.relu(x))))


class Cell(nn.Module):
    """NASNet: two inputs, pairs of branches added, sums concatenated."""

    def __init__(self, before: int, channels: int, width: int) -> None:
        super().__init__()
        self.first, self.second = cbr(before, width, 1, act=False), cbr(channels, width, 1, act=False)
        self.ops = nn.ModuleList(Separable(width) for _ in range(4))

    def forward(self, before: Tensor, x: Tensor) -> Tensor:
        p, h = self.first(before), self.second(x)
        a = self.ops[0](h) + h
        b = self.ops[1](p) + self.ops[2](h)
        c = F.avg_pool2d(h, 3, 1, 1, count_include_pad=False) + p
        d = F.max_pool2d(p, 3, 1, 1) + self.ops[3](a)
        return torch.cat([p, a, b, c, d], 1)


@case("nasnet", removed=0.6)
class NasNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = cbr(3, 8), Cell(8, 8, 6), Cell(8, 30, 6)
        self.path1, self.path2, self.head = nn.Conv2d(30, 8, 1), nn.Conv2d(30, 8, 1), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        s = self.stem(x)
        x = F.relu(self.two(s, self.one(s, s)))
        shifted = F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]  # factorised reduction
        return self.head(torch.cat([self.path1(F.avg_pool2d(x, 1, 2)), self.path2(F.avg_pool2d(shifted, 1, 2))], 1))


@case("maxout", removed=0.5)
class Maxout(nn.Module):
    """Elementwise maximum of two branches, written as torch.max and torch.maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max(self.a(x), self.b(x))
        return self.head(torch.minimum(self.c(x), self.d(x)))
