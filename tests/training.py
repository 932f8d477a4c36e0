"""What the training tests share: a small net, and settings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from irtool.train import Settings


def net(seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    """A small CNN with batch norm for 12x12 grey images."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(576, 10),
    )


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


QUICK = Settings(epochs=2, lr=0.05, batch_size=32)


RESUMABLE = {
    "epochs": 3,
    "lr": 0.05,
    "batch_size": 32,
    "mixup": 0.2,
    "ema": 0.9,
    "label_smoothing": 0.1,
    "schedule": "one-cycle",
    "warmup": 1,
}
