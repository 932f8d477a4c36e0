"""The nets that tests/archive/test_archive.py saves, and how each was compressed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.models as tv
from exported import by_export
from random_norms import randomise
from torch import Tensor, nn

import irtool


class Functional(nn.Module):
    """Raw parameters, functions, sizes written into `forward`, and modules with arguments off the default."""

    index: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, 3, 3, 3) * 0.2)
        self.conv = nn.Conv2d(12, 16, 3, padding=1, padding_mode="reflect")
        self.bn = nn.BatchNorm2d(16, eps=1e-3, momentum=0.3)
        self.act = nn.PReLU(16)
        self.scale = nn.Parameter(torch.rand(1, 16, 1, 1), requires_grad=False)
        self.norm = nn.GroupNorm(2, 16)
        self.last = nn.Linear(16 * 4, 5)
        self.register_buffer("index", torch.tensor([3, 1, 0, 2]))
        self.register_buffer("shift", torch.randn(5), persistent=False)
        self.conv.weight.data = self.conv.weight.data.contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(F.relu(F.conv2d(x, self.weight, stride=2)), (0, 1, 0, 1))
        a, b = self.bn(self.conv(x)).chunk(2, dim=1)
        x = self.act(torch.cat((b, a), 1)) * self.scale
        p, q = torch.split(x, [6, 10], dim=1)
        x = self.norm(torch.cat([q, p], dim=1))
        x = F.adaptive_avg_pool2d(x, 2).view(-1, 16, 4)[..., self.index]
        x = x.masked_fill(x < -1e9, float("-inf"))
        return F.dropout(self.last(x.reshape(x.shape[0], 64)), 0.25, self.training) + self.shift


class Tied(nn.Module):
    """One module called twice, and two modules that hold one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.b.weight = self.a.weight
        self.bn = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(self.a(self.stem(x)).relu())
        return self.head(self.bn(self.b(x)).relu().mean((2, 3)))


class Nested(nn.Module):
    """Dicts and tuples in and out, and a write into a part.

    Args:
        plain: whether the constant is a plain attribute rather than a buffer.
    """

    order: Tensor

    def __init__(self, plain: bool = False) -> None:
        super().__init__()
        self.stem, self.conv, self.bn = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8)
        self.last = nn.Linear(8, 4)
        if plain:
            self.order = torch.arange(4).flip(0)
        else:
            self.register_buffer("order", torch.arange(4).flip(0))

    def forward(self, x: dict[str, Tensor], y: tuple[Tensor, int]) -> dict[str, Any]:
        image = x["image"].clone()
        image[:, :1] = image[:, :1] * 2
        z = self.bn(self.conv(self.stem(image))).relu().mean((2, 3))
        return {"out": self.last(z)[:, self.order] + y[0], "rest": (z, [z + y[1]])}


class Recurrent(nn.Module):
    """A text recogniser in small: convolutions, then an LSTM over the columns."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.bn = nn.Conv2d(1, 6, 1), nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.lstm = nn.LSTM(8, 6, bidirectional=True, batch_first=True)
        self.last = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(self.stem(x)))).mean(2).transpose(1, 2)
        return self.last(self.lstm(x)[0])


class Own(nn.Module):
    """A layer of the user's own, which tracing is told to leave whole."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain[:, None, None]


class WithOwn(nn.Module):
    """A net around such a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.own, self.b = nn.Conv2d(3, 8, 3), Own(), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.own(self.a(x)).relu()).relu().mean((2, 3)))


def densenet() -> nn.Module:
    """DenseNet's wiring in small."""
    return tv.DenseNet(growth_rate=8, block_config=(2, 2), num_init_features=16, num_classes=5)


@dataclass(frozen=True)
class Case:
    """A model, its example inputs, and what is done to it."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (2, 3, 32, 32)
    residual: str = "couple"
    constants: str = "drop"
    fold: bool = False
    criterion: str = "l1"
    exported: bool = False

    def model(self) -> nn.Module:
        """A fresh instance, weights drawn anew."""
        return randomise(self.build())

    def inputs(self) -> tuple[Any, ...]:
        """Example inputs."""
        x = torch.randn(self.shape)
        return ({"image": x}, (torch.randn(self.shape[0], 4), 3)) if self.build is Nested else (x,)

    def compress(self) -> irtool.FxGraph:
        """The graph to save."""
        with by_export() if self.exported else nullcontext():
            graph = irtool.trace(self.model(), self.inputs())
        plan = irtool.plan(graph, self.criterion, 0.4, residual=self.residual)  # type: ignore[arg-type]
        graph = irtool.prune(graph, plan, self.constants)  # type: ignore[arg-type]
        return irtool.fold_batchnorm(graph) if self.fold else graph


def _preresnet() -> nn.Module:
    return irtool.models.PreResNet(20)


CASES = {
    "preresnet-select-absorb": Case(_preresnet, residual="select", constants="absorb", criterion="bn_scale"),
    "preresnet-select-drop-folded": Case(_preresnet, residual="select", fold=True, criterion="bn_scale"),
    "preresnet-couple-absorb-folded": Case(_preresnet, constants="absorb", fold=True),
    "preresnet-couple-drop": Case(_preresnet),
    "mobilenet_v2": Case(lambda: tv.mobilenet_v2(width_mult=0.25, num_classes=5), (2, 3, 64, 64), constants="absorb"),
    "shufflenet_v2": Case(lambda: tv.shufflenet_v2_x0_5(num_classes=5), (2, 3, 64, 64)),
    "densenet-folded": Case(densenet, (2, 3, 64, 64), constants="absorb", fold=True),
    "functional": Case(Functional, (2, 3, 17, 17)),
    "tied": Case(Tied, (2, 3, 8, 8), constants="absorb"),
    "nested": Case(Nested, (2, 3, 8, 8), exported=True),
    "recurrent": Case(Recurrent, (2, 1, 8, 12)),
}
