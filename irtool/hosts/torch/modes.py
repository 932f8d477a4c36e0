"""Train and eval flags, put back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[nn.Module]:
    """The module in eval mode; each child's own flag is put back afterwards.

    Flags are set one by one, since modules that come from `torch.export` refuse `eval()`.
    """
    modes = [(child, child.training) for child in module.modules()]
    for child, _ in modes:
        child.training = False
    try:
        yield module
    finally:
        for child, mode in modes:
            child.training = mode
