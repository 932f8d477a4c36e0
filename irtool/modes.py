"""Train and eval flags, put back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from torch import nn


def evaluating(module: nn.Module) -> AbstractContextManager[nn.Module]:
    """The module in eval mode; each child's own flag is put back afterwards."""
    return in_mode(module, training=False)


@contextmanager
def in_mode(module: nn.Module, *, training: bool) -> Iterator[nn.Module]:
    """The module in train or eval mode; each child's own flag is put back afterwards.

    Flags are set one by one, since modules that come from `torch.export` refuse `train()` and `eval()`.
    """
    modes = [(child, child.training) for child in module.modules()]
    for child, _ in modes:
        child.training = training
    try:
        yield module
    finally:
        for child, mode in modes:
            child.training = mode
