"""Operators that mix channels, computed from the surviving channels alone: what a sliced graph really computes there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from irtool.ir.graph import Node, Value

Rest = Callable[[Tensor], Any]
"""The node's own operator as a function of its first input."""
Kept = Callable[[Value], Tensor]
"""A parameter's surviving entries."""


Mixing = Callable[["Node", "Packed", Rest, Kept], Any | None]
"""How an operator is computed from the surviving channels; None where this has no plain form."""


def on_kept(rule: Mixing, node: Node, x: Tensor, masks: Sequence[Tensor], rest: Rest, parameter: Kept) -> Any | None:
    """Run a channel-mixing node on the channels that stay.

    Args:
        rule: how its operator does that.
        node: the node.
        x: its input, any floating type.
        masks: which channels stay, one of each label tensor's shape (size 1 along axes without channels).
        rest: the node's own operator.
        parameter: the surviving entries of a parameter, in their order.

    Returns:
        Its output in the original shape, zeros for removed channels; None where this has no plain form.
    """
    mixed = mixed_axes(node, x.dim())
    packed = Packed(x)
    for mask in masks:
        axes = [axis for axis, size in enumerate(mask.shape) if size > 1]
        if mixed.intersection(axes) and not packed.pack(mask, axes):
            return None
    return rule(node, packed, rest, parameter)


@dataclass
class Packed:
    """A tensor without its removed channels, and how to put what was computed from it back in place."""

    tensor: Tensor
    _steps: list[tuple[int, Tensor, torch.Size]] = field(default_factory=list)

    def pack(self, mask: Tensor, axes: Sequence[int]) -> bool:
        """Close the gaps along the last axis of a mask, row by row; whole rows that go are taken out first. False if rows differ."""
        for axis in axes[:-1]:
            rows = mask.movedim(axis, 0).reshape(mask.shape[axis], -1).any(1)
            if not bool(rows.all()):
                self._take(axis, _along(rows.nonzero()[:, 0], axis, mask.dim()))
                mask = mask.index_select(axis, rows.nonzero()[:, 0])
        counts = mask.sum(axes[-1])
        if int(counts.min()) != int(counts.max()):
            return False
        order = torch.argsort((~mask).to(torch.uint8), dim=axes[-1], stable=True).narrow(axes[-1], 0, int(counts.max()))
        self._take(axes[-1], order)
        return True

    def _take(self, axis: int, index: Tensor) -> None:
        full = index.expand([index.shape[axis] if d == axis else size for d, size in enumerate(self.tensor.shape)])
        self._steps.append((axis, full, self.tensor.shape))
        self.tensor = self.tensor.gather(axis, full)

    def spread(self, part: Tensor) -> Tensor:
        """A result of the packed shape in the original one, zeros where nothing was."""
        for axis, index, shape in reversed(self._steps):
            part = torch.zeros(shape, dtype=part.dtype).scatter(axis, index, part)
        return part


def _along(index: Tensor, axis: int, rank: int) -> Tensor:
    return index.reshape([-1 if d == axis else 1 for d in range(rank)])


def mixed_axes(node: Node, rank: int) -> set[int]:
    """The axes over which the node mixes."""
    if node.op in ("LayerNormalization", "RMSNormalization"):
        return set(range(rank + node.attrs["axis"], rank))
    if node.op == "BatchNormalization":
        return set(range(rank)) - {1}
    if node.op in ("Softmax", "LpNormalization", "Cumsum", "LogCumsumExp"):
        return {node.attrs["axis"]}
    if node.op == "Conv":  # one that slides along the channels
        return set(range(rank - len(node.operands["weight"].sizes) + 2, rank))
    if node.op == "Reduce":
        return set(node.attrs["axes"])
    return set(range(rank))


def _given(node: Node, role: str, parameter: Kept, like: Tensor) -> Tensor | None:
    value = node.get(role)
    return None if value is None or value.data is None else parameter(value).to(like)


def last_axes_norm(node: Node, packed: Packed, rest: Rest, parameter: Kept) -> Any | None:
    """Layer norm and RMS norm."""
    x = packed.tensor
    sizes = x.shape[node.attrs["axis"] :]
    weight, bias = (_given(node, role, parameter, x) for role in ("weight", "bias"))
    if any(held is not None and held.shape != sizes for held in (weight, bias)):
        return None
    if node.op == "RMSNormalization":
        return packed.spread(F.rms_norm(x, sizes, weight, node.attrs.get("epsilon")))
    return packed.spread(F.layer_norm(x, sizes, weight, bias, node.attrs["epsilon"]))


def group_norm(node: Node, packed: Packed, rest: Rest, parameter: Kept) -> Any | None:
    """Group norm."""
    x = packed.tensor
    weight, bias = _given(node, "weight", parameter, x), _given(node, "bias", parameter, x)
    return packed.spread(F.group_norm(x, node.attrs["num_groups"], weight, bias, node.attrs["epsilon"]))


def same_shape(node: Node, packed: Packed, rest: Rest, parameter: Kept) -> Any | None:
    """An operator whose result has its input's shape."""
    return packed.spread(rest(packed.tensor))


def reduced(node: Node, packed: Packed, rest: Rest, parameter: Kept) -> Any | None:
    """A reduction."""
    return rest(packed.tensor)
