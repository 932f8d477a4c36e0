"""A net by its seed: a stem, two to four blocks in a row or beside each other, and a head."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn

from strange_nets.blocks import BLOCKS


class StrangeNet(nn.Module):
    """A stem, blocks, and a head that gives a tensor, a tuple or a dict."""

    def __init__(self, names: tuple[str, ...], width: int, sums: tuple[bool, ...], head: str) -> None:
        super().__init__()
        self.names, self.sums, self.kind = names, sums, head
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width))
        self.blocks = nn.ModuleList(BLOCKS[name](width) for name in names)
        self.head, self.other = nn.Conv2d(width, 5, 1), nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        for block, added in zip(self.blocks, self.sums, strict=True):
            y = block(torch.relu(x))
            x = x + y if added else y
        y = self.head(torch.relu(x))
        if self.kind == "pooled":
            return y.mean((2, 3))
        return {"map": y, "tuple": (y, self.other(x)), "dict": {"first": y, "second": [self.other(x)]}}[self.kind]


def draw(seed: int) -> StrangeNet:
    """The net of a seed, in eval mode."""
    rng = random.Random(seed)
    names = tuple(rng.choice(sorted(BLOCKS)) for _ in range(rng.randint(1, 3)))
    sums = tuple(rng.random() < 0.4 for _ in names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = StrangeNet(names, rng.choice((8, 12)), sums, rng.choice(("pooled", "map", "tuple", "dict")))
        net.stem[1].running_mean.normal_()
        net.stem[1].running_var.uniform_(0.5, 2.0)
    return net.eval()
