"""Example values of a traced program, without data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx


class Examples(dict[fx.Node, Any]):
    """Example values by host node: tensors on the meta device, and what the program computes besides. Tensors are made when asked for."""

    def __init__(self, values: Mapping[fx.Node, Any]) -> None:
        super().__init__()
        self._values = values

    def __missing__(self, node: fx.Node) -> torch.Tensor:
        value = self._values[node]
        made = self[node] = torch.empty(value.sizes, dtype=value.dtype, device="meta")
        return made
