"""One layer, something in the middle, one layer: what the middle does to channels is what these nets are for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import irtool
from irtool.pruning.slicing.check import MaskedCheck

Middle = Callable[[Any, Tensor], Tensor]
"""Of the net, whose parts it may use, and 16 channels."""


class Small(nn.Module):
    """Three channels become 16, pass through the middle, and meet a head of 4 outputs that takes what comes."""

    def __init__(self, middle: Middle, head: type[nn.Module], **parts: Any) -> None:
        super().__init__()
        self.first, self.middle = nn.Conv2d(3, 16, 3, padding=1), middle
        self.head = head(4) if head is nn.LazyLinear else head(4, 1)
        for name, part in parts.items():
            if isinstance(part, Tensor):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self, torch.relu(self.first(x))))


def small(middle: Middle, head: type[nn.Module] = nn.LazyConv2d, **parts: Any) -> irtool.FxGraph:
    """Such a net, traced."""
    torch.manual_seed(0)
    model, x = Small(middle, head, **parts).eval(), torch.randn(2, 3, 8, 8)
    model(x)
    return irtool.trace(model, x)


def halved(graph: irtool.FxGraph, constants: str = "drop") -> tuple[MaskedCheck, int, str]:
    """Half of each layer's channels: the check, how many the first layer lost, and why it lost none."""
    plan = irtool.plan(graph, "l1", 0.5, "local")
    first = next(layer for layer in plan.layers if layer.name.startswith("first"))
    return irtool.check_prune(graph, plan, constants=constants), first.total - first.kept, first.reason or ""
