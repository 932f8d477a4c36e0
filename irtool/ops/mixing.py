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
Survivors = Callable[[Value], Tensor]
"""A parameter's surviving entries."""


def on_survivors(node: Node, x: Tensor, masks: Sequence[Tensor], rest: Rest, parameter: Survivors) -> Any | None:
    """Run a channel-mixing node on the channels that stay.

    Args:
        node: the node.
        x: its input, any floating type.
        masks: which channels stay, one of each label tensor's shape (size 1 along axes without channels).
        rest: the node's own operator.
        parameter: the surviving entries of a parameter, in their order.

    Returns:
        Its output in the original shape, zeros for removed channels; None where this has no plain form.
    """
    rule = _RULES.get(node.op)
    if rule is None:
        return None
    mixed = mixed_axes(node, x.dim())
    packed = _Packed(x)
    for mask in masks:
        axes = [axis for axis, size in enumerate(mask.shape) if size > 1]
        if mixed.intersection(axes) and not packed.pack(mask, axes):
            return None
    return rule(node, packed, rest, parameter)


@dataclass
class _Packed:
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


def _given(node: Node, role: str, parameter: Survivors, like: Tensor) -> Tensor | None:
    value = node.get(role)
    return None if value is None or value.data is None else parameter(value).to(like)


def _last_axes_norm(node: Node, packed: _Packed, rest: Rest, parameter: Survivors) -> Any | None:
    x = packed.tensor
    sizes = x.shape[node.attrs["axis"] :]
    weight, bias = (_given(node, role, parameter, x) for role in ("weight", "bias"))
    if any(held is not None and held.shape != sizes for held in (weight, bias)):
        return None
    if node.op == "RMSNormalization":
        return packed.spread(F.rms_norm(x, sizes, weight, node.attrs.get("epsilon")))
    return packed.spread(F.layer_norm(x, sizes, weight, bias, node.attrs["epsilon"]))


def _group_norm(node: Node, packed: _Packed, rest: Rest, parameter: Survivors) -> Any | None:
    x = packed.tensor
    weight, bias = _given(node, "weight", parameter, x), _given(node, "bias", parameter, x)
    return packed.spread(F.group_norm(x, node.attrs["num_groups"], weight, bias, node.attrs["epsilon"]))


def _same_shape(node: Node, packed: _Packed, rest: Rest, parameter: Survivors) -> Any | None:
    return packed.spread(rest(packed.tensor))


def _reduced(node: Node, packed: _Packed, rest: Rest, parameter: Survivors) -> Any | None:
    return rest(packed.tensor)


_RULES: dict[str, Callable[[Node, _Packed, Rest, Survivors], Any | None]] = {
    "LayerNormalization": _last_axes_norm,
    "RMSNormalization": _last_axes_norm,
    "GroupNormalization": _group_norm,
    "BatchNormalization": _same_shape,
    "InstanceNormalization": _same_shape,
    "Softmax": _same_shape,
    "LRN": _same_shape,
    "Cumsum": _same_shape,
    "LogCumsumExp": _same_shape,
    "LpNormalization": _same_shape,
    "Conv": _same_shape,
    "Reduce": _reduced,
}
