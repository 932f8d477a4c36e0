"""Two convolutions and a head around a function of the test's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Two convolutions and a head around a function of the test."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        self.a, self.b, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 4, 1)
        for name, part in parts.items():
            self.register_buffer(name, part) if isinstance(part, Tensor) else setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def make(function: Callable[[Any, Tensor], Any], **parts: Any) -> Net:
    torch.manual_seed(0)
    return Net(function, **parts).eval()


X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
