"""The seven nets of `bench/engines.py`, with random weights where no others are needed: each as a graph that is ready to be written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from int8_nets import Nets
from torch import Tensor, nn
from torchvision.models import efficientnet_b0, mobilenet_v2, resnet50

import irtool
from irtool.models import VGG


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.SiLU(inplace=True)
    )


class UNet(nn.Module):
    """A U-Net: convolutions in pairs, max pools down, transposed convolutions up, skips joined by concatenation.

    Args:
        width: channels of the first level; each level below has twice as many.
        levels: how many times sizes are halved.
    """

    def __init__(self, width: int = 16, levels: int = 3) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels + 1)]
        self.down = nn.ModuleList(self._pair(3 if not level else widths[level - 1], widths[level]) for level in range(levels + 1))
        self.up = nn.ModuleList(nn.ConvTranspose2d(wide, wide // 2, 2, 2) for wide in reversed(widths[1:]))
        self.joined = nn.ModuleList(self._pair(wide, wide // 2) for wide in reversed(widths[1:]))
        self.head = nn.Conv2d(width, 2, 1)

    @staticmethod
    def _pair(inputs: int, outputs: int) -> nn.Sequential:
        parts: list[nn.Module] = []
        for source in (inputs, outputs):
            parts += [nn.Conv2d(source, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        return nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        for part in self.down:
            x = part(x if not kept else F.max_pool2d(x, 2))
            kept.append(x)
        for up, joined, skip in zip(self.up, self.joined, reversed(kept[:-1]), strict=True):
            x = joined(torch.cat([skip, up(x)], 1))
        return self.head(x)


class _Split(nn.Module):
    """Half of the channels go through residual blocks, and all that arises on the way is concatenated."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        half = width // 2
        self.first, self.last = _conv(width, width, 1), _conv(half * (2 + blocks), width, 1)
        self.blocks = nn.ModuleList(nn.Sequential(_conv(half, half), _conv(half, half)) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(parts[-1] + block(parts[-1]))
        return self.last(torch.cat(parts, 1))


class Detector(nn.Module):
    """A detector of the kind of YOLO: three scales, pools in a row, a path up by nearest upsampling, boxes decoded on grids.

    Args:
        width: channels of the first scale.
        classes: how many.
        size: pixels of a side of its images, for the grids.

    Returns of `forward`: (N, 4 + classes, places): centre, width and height in pixels, and the classes' probabilities.
    """

    def __init__(self, width: int = 24, classes: int = 20, size: int = 160) -> None:
        super().__init__()
        a, b, c = width, 2 * width, 4 * width
        self.stem = nn.Sequential(_conv(3, a, 3, 2), _conv(a, a, 3, 2), _Split(a, 1))
        self.small, self.middle = nn.Sequential(_conv(a, a, 3, 2), _Split(a, 1)), nn.Sequential(_conv(a, b, 3, 2), _Split(b, 1))
        self.large, self.pooled = nn.Sequential(_conv(b, c, 3, 2), _Split(c, 1)), _conv(4 * c, c, 1)
        self.upper, self.lower = nn.Sequential(_conv(b + c, b, 1), _Split(b, 1)), nn.Sequential(_conv(a + b, a, 1), _Split(a, 1))
        self.heads = nn.ModuleList(nn.Sequential(_conv(wide, wide), nn.Conv2d(wide, 4 + classes, 1)) for wide in (a, b, c))
        grids, strides = [], []
        for stride in (8, 16, 32):
            line = (torch.arange(size // stride) + 0.5) * stride
            grid = torch.stack(torch.meshgrid(line, line, indexing="xy")).flatten(1)
            grids.append(grid)
            strides.append(torch.full((1, grid.shape[1]), float(stride)))
        self.grid: Tensor
        self.stride: Tensor
        self.register_buffer("grid", torch.cat(grids, 1))
        self.register_buffer("stride", torch.cat(strides, 1))

    def forward(self, x: Tensor) -> Tensor:
        small = self.small(self.stem(x))
        middle = self.middle(small)
        large = self.large(middle)
        pools = [large]
        for _ in range(3):
            pools.append(F.max_pool2d(pools[-1], 5, 1, 2))
        large = self.pooled(torch.cat(pools, 1))
        middle = self.upper(torch.cat([F.interpolate(large, scale_factor=2.0), middle], 1))
        small = self.lower(torch.cat([F.interpolate(middle, scale_factor=2.0), small], 1))
        found = torch.cat([head(y).flatten(2) for head, y in zip(self.heads, (small, middle, large), strict=True)], 2)
        centre = (found[:, :2].sigmoid() * 2 - 1) * self.stride + self.grid
        sides = found[:, 2:4].clamp(-4, 4).exp() * self.stride
        return torch.cat([centre, sides, found[:, 4:].sigmoid()], 1)


def _traced(net: nn.Module, size: int) -> irtool.FxGraph:
    """Trace a net of random weights whose batch norms have the statistics of noise: else its outputs would vanish, and all engines agree."""
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None  # the mean of all batches
    with torch.no_grad():
        net.train()(torch.randn(8, 3, size, size))
    return irtool.trace(net.eval(), torch.randn(2, 3, size, size))


def _pruned_vgg(_shared: Path) -> irtool.FxGraph:
    graph = _traced(VGG(16), 32)
    return irtool.prune(graph, irtool.plan(graph, "l1", 0.5))


NETS: dict[str, Callable[[Path], irtool.FxGraph]] = {
    "PreResNet-38 pruned at 0.5, 32x32": lambda shared: Nets(shared, None, shared).graph("PreResNet-38, sparse, pruned at 0.5"),
    "VGG-16 pruned at 0.5, 32x32": _pruned_vgg,
    "MobileNetV2, 128x128": lambda _shared: _traced(mobilenet_v2(), 128),
    "ResNet-50, 128x128": lambda _shared: _traced(resnet50(), 128),
    "EfficientNet-B0, 128x128": lambda _shared: _traced(efficientnet_b0(), 128),
    "U-Net, 128x128": lambda _shared: _traced(UNet(), 128),
    "detector like YOLO, 160x160": lambda _shared: _traced(Detector(), 160),
}
"""By name and size of an image: what makes each from the folder of published weights, which the first alone needs."""
