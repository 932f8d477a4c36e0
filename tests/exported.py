"""Traces by torch.export alone, whatever the own tracers have learnt to follow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from irtool.hosts.torch.tracing.trace import ATTEMPTS


@contextmanager
def by_export() -> Iterator[None]:
    """Let `irtool.trace` try torch.export alone for the length of the block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("irtool.hosts.torch.tracing.trace.ATTEMPTS", ATTEMPTS[-1:])
        yield
