"""What a structure is, where structures are registered, and the bricks that most of them use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from random_norms import randomise
from torch import Tensor, nn

import irtool


@dataclass(frozen=True)
class Case:
    """A small net and what is expected of it.

    Attributes:
        build: makes the net.
        shapes: shapes of its inputs.
        removed: the fraction of parameters that must go at 0.5 local, so that nothing is pinned in silence.
        inexact: a part of each message about a step that mixes channels; empty: every step is exact.
        reason: a part of the reason that some layer must give for staying; empty: no layer may give one but for outputs.
        pinned: other reasons that are all right (a part of each).
        leaf: passed to `trace`.
        rows: channels are mixed row by row, or along with other axes: the simple reference of these tests does not follow that.
        aligned: whether `round_to=4` must hold in every layer that loses channels.
    """

    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...] = ((2, 3, 8, 8),)
    removed: float = 0.5
    inexact: tuple[str, ...] = ()
    reason: str = ""
    pinned: tuple[str, ...] = ()
    leaf: tuple[str, ...] = ()
    aligned: bool = True
    rows: bool = False

    def inputs(self) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(1)
        return tuple(torch.randn(shape, generator=generator) for shape in self.shapes)


CASES: dict[str, Case] = {}


def case(name: str, **expected: object) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a net's class under a name."""

    def register(kind: type[nn.Module]) -> type[nn.Module]:
        assert name not in CASES
        CASES[name] = Case(kind, **expected)  # type: ignore[arg-type]
        return kind

    return register


@cache
def module(name: str) -> nn.Module:
    """The net of a case, in float64 with random weights, affine values and statistics. Built once."""
    torch.manual_seed(0)
    return randomise(CASES[name].build()).double().eval()


@cache
def graph(name: str) -> irtool.FxGraph:
    """The traced net. Passes do not change it, so one will do for all tests."""
    found = CASES[name]
    return irtool.trace(module(name), tuple(x.double() for x in found.inputs()), leaf=found.leaf)


def cbr(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([nn.ReLU()] if act else []))


class Head(nn.Module):
    """Global pooling and a linear layer."""

    def __init__(self, channels: int, classes: int = 5) -> None:
        super().__init__()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(x).flatten(1))
