"""Operators that mix channels, computed from the surviving channels alone: what a sliced graph really computes there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from irtool.ir.graph import Node

Rest = Callable[[Tensor], Any]
"""The node's own operator as a function of its first input."""


def on_survivors(node: Node, x: Tensor, stays: Tensor, rest: Rest) -> Any | None:
    """Run a channel-mixing node on the channels that stay.

    Args:
        node: the node.
        x: its input, any floating type.
        stays: which channels stay, of the input's label shape (size 1 along axes without channels).
        rest: the node's own operator.

    Returns:
        Its output in the original shape, zeros for removed channels; None where this has no plain form.
    """
    axes = [axis for axis, size in enumerate(stays.shape) if size > 1]
    rule = _RULES.get(node.op)
    if rule is None or len(axes) != 1:
        return None
    axis = axes[0]
    kept = stays.reshape(-1).nonzero()[:, 0]
    return rule(node, x, x.index_select(axis, kept), axis, kept, rest)


def _spread(x: Tensor, part: Tensor, axis: int, kept: Tensor) -> Tensor:
    return torch.zeros_like(x).index_copy(axis, kept, part)


def _parameter(node: Node, role: str, kept: Tensor, like: Tensor) -> Tensor | None:
    value = node.get(role)
    return None if value is None or value.data is None else value.data.to(like).index_select(0, kept)


def _last_axis_norm(node: Node, x: Tensor, part: Tensor, axis: int, kept: Tensor, rest: Rest) -> Any | None:
    shape = node.attrs.get("normalized_shape", (1,))
    if axis != x.dim() - 1 or (not isinstance(shape, int) and len(shape) != 1):
        return None
    weight, bias, eps = _parameter(node, "weight", kept, x), _parameter(node, "bias", kept, x), node.attrs.get("eps")
    if node.op == "RMSNormalization":
        return _spread(x, F.rms_norm(part, (kept.numel(),), weight, eps), axis, kept)
    return _spread(x, F.layer_norm(part, (kept.numel(),), weight, bias, 1e-5 if eps is None else eps), axis, kept)


def _group_norm(node: Node, x: Tensor, part: Tensor, axis: int, kept: Tensor, rest: Rest) -> Any | None:
    eps = node.attrs.get("eps")
    normed = F.group_norm(
        part,
        int(node.attrs["num_groups"]),
        _parameter(node, "weight", kept, x),
        _parameter(node, "bias", kept, x),
        1e-5 if eps is None else eps,
    )
    return _spread(x, normed, axis, kept)


def _same_shape(node: Node, x: Tensor, part: Tensor, axis: int, kept: Tensor, rest: Rest) -> Any | None:
    return _spread(x, rest(part), axis, kept)


def _reduced(node: Node, x: Tensor, part: Tensor, axis: int, kept: Tensor, rest: Rest) -> Any | None:
    return rest(part)


_RULES: dict[str, Callable[[Node, Tensor, Tensor, int, Tensor, Rest], Any | None]] = {
    "LayerNormalization": _last_axis_norm,
    "RMSNormalization": _last_axis_norm,
    "GroupNormalization": _group_norm,
    "Softmax": _same_shape,
    "LRN": _same_shape,
    "Cumsum": _same_shape,
    "LpNormalization": _same_shape,
    "Reduce": _reduced,
}
