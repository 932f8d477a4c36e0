"""Where a net puts rows in order, an order that rounding decides is no property of it: an export is not refused for that, and for no more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from irtool.engines.agreement import row_error
from irtool.engines.flat_module import FlatModule
from irtool.engines.onnxruntime.verify import TOLERANCE, _is_undecided


class Ranked(nn.Module):
    """The rows of an image (N, C, F), by their sums: the largest first."""

    def forward(self, x: Tensor) -> Tensor:
        order = x.sum(2).argsort(1, descending=True)
        return x.gather(1, order.unsqueeze(2).expand_as(x))


def _case(gap: float) -> tuple[Any, list[Tensor], list[np.ndarray]]:
    """Two rows of other entries, whose sums lie apart by a part of themselves."""
    first = torch.tensor([1.0, 2.0, 4.0, 8.0])
    x = torch.stack([first, first.flip(0) * (1 + gap)]).unsqueeze(0)
    flat = FlatModule(Ranked(), (x,))
    return SimpleNamespace(flat=flat), [x], [tensor.numpy() for tensor in flat(x)]


def test_an_order_that_rounding_decides_is_undecided() -> None:
    assert _is_undecided(*_case(2e-7))


def test_an_order_that_more_than_rounding_decides_is_not() -> None:
    assert not _is_undecided(*_case(1e-3))


def test_rows_in_another_order_are_the_same_rows_and_other_rows_are_not() -> None:
    _, _, (rows,) = _case(1e-3)
    assert row_error(rows[:, ::-1].copy(), rows) <= TOLERANCE
    assert row_error(rows * 1.01, rows) > TOLERANCE
