"""The blocks of random CNNs. Each takes and returns (N, C, H, W); widths stay multiples of 4, maps 4 to 16 pixels wide."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAST = (4, 8, 12, 16)


@dataclass
class Plan:
    """What a block's constructor gets: choices, the width and the map size that arrive; it updates both."""

    rng: random.Random
    channels: int
    size: int

    def width(self) -> int:
        return self.rng.choice(LAST)

    def coin(self) -> bool:
        return self.rng.random() < 0.5


BLOCKS: dict[str, Callable[[Plan], nn.Module]] = {}


def block(kind: type[nn.Module]) -> type[nn.Module]:
    """Register a class whose constructor takes a `Plan`."""
    BLOCKS[kind.__name__] = kind  # type: ignore[assignment]
    return kind


def activation(plan: Plan, channels: int) -> nn.Module:
    return plan.rng.choice([nn.ReLU, nn.ReLU, nn.SiLU, nn.LeakyReLU, nn.Hardswish, nn.Sigmoid, lambda: nn.PReLU(channels), nn.Identity])()


def conv(plan: Plan, inputs: int, outputs: int, kernel: int | None = None, stride: int = 1, groups: int = 1) -> nn.Sequential:
    kernel = plan.rng.choice([1, 3]) if kernel is None else kernel
    bn = plan.coin()
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=not bn or plan.coin())]
    if bn:
        layers.append(nn.BatchNorm2d(outputs))
    return nn.Sequential(*layers, activation(plan, outputs))


@block
class Plain(nn.Module):
    def __init__(self, plan: Plan) -> None:
        super().__init__()
        stride = 2 if plan.size > 4 and plan.coin() else 1
        width = plan.width()
        self.body = conv(plan, plan.channels, width, stride=stride)
        plan.channels, plan.size = width, plan.size // stride

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@block
class Residual(nn.Module):
    def __init__(self, plan: Plan) -> None:
        super().__init__()
        c, inner = plan.channels, plan.width()
        self.body = nn.Sequential(conv(plan, c, inner), conv(plan, inner, c))
        self.inplace, self.pre = plan.coin(), nn.BatchNorm2d(c) if plan.coin() else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x if self.pre is None else F.relu(self.pre(x)))
        if self.inplace:
            y += x
            return y
        return x + y


@block
class Dense(nn.Module):
    """Nested concatenation, of features or of concatenations."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        c, g = plan.channels, 4
        self.one, self.two, self.three = conv(plan, c, g), conv(plan, c + g, g), conv(plan, c + 2 * g, plan.width())
        self.swap = plan.coin()
        plan.channels = self.three[0].out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([x, self.one(x)], 1)
        z = self.two(y)
        return self.three(torch.cat((z, y) if self.swap else (y, z), dim=1))


@block
class Branches(nn.Module):
    def __init__(self, plan: Plan) -> None:
        super().__init__()
        c = plan.channels
        self.a, self.b, self.c, self.pool = conv(plan, c, 4), conv(plan, c, 8, 1), conv(plan, 8, 4), plan.coin()
        plan.channels = 4 + 4 + (c if self.pool else 8)
        self.join = conv(plan, plan.channels, plan.width(), 1)
        plan.channels = self.join[0].out_channels

    def forward(self, x: Tensor) -> Tensor:
        b = self.b(x)
        last = F.avg_pool2d(x, 3, 1, 1) if self.pool else b
        return self.join(torch.cat([self.a(x), torch.cat([self.c(b), last], 1)], 1))


@block
class SplitCat(nn.Module):
    """Parts of the channels go their own ways."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        c = plan.channels
        first = plan.rng.choice([n for n in (1, 2, 3, c // 2) if n < c])
        self.sizes, self.kind = [first, c - first], plan.rng.choice(["split", "slice", "narrow"])
        self.a, self.b, self.order = conv(plan, first, 4), conv(plan, c - first, c - first), plan.coin()
        plan.channels = 4 + c - first
        self.join = conv(plan, plan.channels, plan.width())
        plan.channels = self.join[0].out_channels

    def forward(self, x: Tensor) -> Tensor:
        n = self.sizes[0]
        if self.kind == "split":
            p, q = torch.split(x, self.sizes, dim=1)
        elif self.kind == "slice":
            p, q = x[:, :n], x[:, n:, :, :]
        else:
            p, q = x.narrow(1, 0, n), x.narrow(1, n, self.sizes[1])
        parts = [self.a(p), q + self.b(q)]
        return self.join(torch.cat(parts if self.order else parts[::-1], 1))


@block
class C2f(nn.Module):
    def __init__(self, plan: Plan) -> None:
        super().__init__()
        h = plan.rng.choice([4, 8])
        self.first, self.m, self.shortcut = conv(plan, plan.channels, 2 * h, 1), conv(plan, h, h, 3), plan.coin()
        self.last = conv(plan, 3 * h, plan.width(), 1)
        plan.channels = self.last[0].out_channels

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x).chunk(2, dim=1)
        c = self.m(b) + b if self.shortcut else self.m(b)
        return self.last(torch.cat([a, b, c], 1))


@block
class Shuffle(nn.Module):
    """Grouped 1x1, channel shuffle in one of its spellings, depthwise, grouped 1x1, perhaps a residual."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        c, inner, self.groups = plan.channels, plan.rng.choice([8, 16]), plan.rng.choice([2, 4])
        self.a, self.d, self.b = (
            conv(plan, c, inner, 1, groups=self.groups),
            conv(plan, inner, inner, 3, groups=inner),
            conv(plan, inner, c, 1, groups=self.groups),
        )
        self.kind, self.residual, self.inner, self.size = (
            plan.rng.choice(["view", "literal", "module", "flatten"]),
            plan.coin(),
            inner,
            plan.size,
        )
        self.shuffle = nn.ChannelShuffle(self.groups)

    def forward(self, x: Tensor) -> Tensor:
        y, g, n, s = self.a(x), self.groups, self.inner, self.size
        if self.kind == "view":
            b, c, h, w = y.shape
            y = y.view(b, g, c // g, h, w).transpose(1, 2).contiguous().view(b, c, h, w)
        elif self.kind == "literal":
            y = y.reshape(-1, g, n // g, s, s).permute(0, 2, 1, 3, 4).reshape(-1, n, s, s)
        elif self.kind == "flatten":
            y = y.unflatten(1, (g, n // g)).transpose(1, 2).flatten(1, 2)
        else:
            y = self.shuffle(y)
        y = self.b(self.d(y))
        return x + y if self.residual else y


@block
class ShuffleV2(nn.Module):
    def __init__(self, plan: Plan) -> None:
        super().__init__()
        half = plan.channels // 2
        self.branch = nn.Sequential(conv(plan, half, half, 1), conv(plan, half, half, 3, groups=half))

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        y = torch.stack([a, self.branch(b)], dim=2)
        return y.flatten(1, 2)


@block
class Grouped(nn.Module):
    def __init__(self, plan: Plan) -> None:
        super().__init__()
        width = plan.width()
        self.a = conv(plan, plan.channels, width, groups=plan.rng.choice([2, 4]))
        self.b = conv(plan, width, width, groups=plan.rng.choice([2, 4]))
        plan.channels = width

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


@block
class Depthwise(nn.Module):
    """With a multiplier of 1 or 2, as a module or a function."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        c = plan.channels
        multiplier = 2 if c <= 8 and plan.coin() else 1
        self.groups, self.weight, self.bias = (
            c,
            nn.Parameter(torch.randn(c * multiplier, 1, 3, 3) * 0.4),
            nn.Parameter(torch.randn(c * multiplier)),
        )
        self.point = conv(plan, c * multiplier, c, 1) if plan.coin() else None
        plan.channels = c if self.point is not None else c * multiplier

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, self.bias, padding=1, groups=self.groups)
        return x if self.point is None else self.point(x)


@block
class Transposed(nn.Module):
    """Down, up by a transposed convolution (plain, grouped, depthwise), concatenated or added to what was there."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        c, inner = plan.channels, plan.rng.choice([8, 16])
        self.down, self.cat = conv(plan, c, inner, 3, 2), plan.coin()
        groups = plan.rng.choice([1, 1, 2, 4])
        self.up = nn.ConvTranspose2d(inner, c, 2, 2, groups=groups, bias=plan.coin())
        self.bn = nn.BatchNorm2d(c) if plan.coin() else nn.Identity()
        self.depth = nn.ConvTranspose2d(c, c, 3, 1, 1, groups=c) if plan.coin() else nn.Identity()
        self.last = conv(plan, 2 * c if self.cat else c, c)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depth(self.bn(self.up(self.down(x))))
        return self.last(torch.cat([x, y], dim=1) if self.cat else x + y)


@block
class Shared(nn.Module):
    """One convolution at two places; its outputs may be its inputs."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        c = plan.channels
        self.conv, self.a, self.b, self.twice = nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c), nn.BatchNorm2d(c), plan.coin()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(self.conv(x)))
        if self.twice:
            return self.b(self.conv(y))
        return y + torch.sigmoid(self.b(self.conv(F.max_pool2d(x, 3, 1, 1))))


@block
class SE(nn.Module):
    def __init__(self, plan: Plan) -> None:
        super().__init__()
        c, self.linear = plan.channels, plan.coin()
        layer = nn.Linear if self.linear else lambda i, o: nn.Conv2d(i, o, 1)
        self.down, self.up = layer(c, 8), layer(8, c)

    def forward(self, x: Tensor) -> Tensor:
        if self.linear:
            b, c = x.size(0), x.size(1)
            return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3)))))).view(b, c, 1, 1)
        return F.hardsigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1))))).mul(x)


@block
class PixelShuffle(nn.Module):
    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.a, self.down = conv(plan, plan.channels, 16), plan.size > 8 or plan.coin()
        self.b = conv(plan, 4, 4)
        self.c = conv(plan, 16 if self.down else 4, plan.width())
        plan.channels, plan.size = self.c[0].out_channels, plan.size if self.down else 2 * plan.size

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(F.pixel_shuffle(self.a(x), 2))
        return self.c(F.pixel_unshuffle(y, 2) if self.down else y)


@block
class ChannelPad(nn.Module):
    """The parameter-free shortcut of CIFAR ResNets."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        c = plan.channels
        self.before, self.after = plan.rng.choice([(2, 2), (0, 4), (4, 0), (1, 3)])
        self.stride = 2 if plan.size > 4 else 1
        self.body = conv(plan, c, c + self.before + self.after, 3, self.stride)
        plan.channels, plan.size = c + self.before + self.after, plan.size // self.stride

    def forward(self, x: Tensor) -> Tensor:
        y = x[:, :, :: self.stride, :: self.stride]
        return F.relu(self.body(x) + F.pad(y, (0, 0, 0, 0, self.before, self.after)))


@block
class PoolUp(nn.Module):
    """Pooling and resizing, added back."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.pool, self.mode = plan.rng.choice([nn.MaxPool2d(2), nn.AvgPool2d(2)]), plan.rng.choice(["nearest", "bilinear"])
        self.conv = conv(plan, plan.channels, plan.channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.interpolate(self.conv(self.pool(x)), size=x.shape[-2:], mode=self.mode)
