"""Channel selection: what lets one reader of a stream drop channels that the other readers keep."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ChannelSelect(nn.Module):
    """`x[:, index]` for a constant index: (N, C, ...) -> (N, len(index), ...).

    Passes insert it before a batch norm that reads a residual stream, and own its index: dropping a selected channel
    only shortens the index.
    """

    index: Tensor

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        return torch.index_select(x, 1, self.index)

    def extra_repr(self) -> str:
        return f"channels={self.index.numel()}"
