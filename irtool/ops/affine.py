"""Batch norms in numbers, and layers' weights seen from their inputs and outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from irtool.ir.graph import Node


def scale_and_shift(node: Node) -> tuple[Tensor, Tensor]:
    """A batch norm in eval mode as y = scale * x + shift, float64, shapes (channels,)."""
    mean, var = node.operands["running_mean"].data, node.operands["running_var"].data
    assert mean is not None
    assert var is not None
    gamma, beta = node.get("weight"), node.get("bias")
    eps = node.attrs.get("eps")
    scale = (var.double() + (1e-5 if eps is None else float(eps))).rsqrt()
    if gamma is not None and gamma.data is not None:
        scale = scale * gamma.data.double()
    shift = -mean.double() * scale
    if beta is not None and beta.data is not None:
        shift = shift + beta.data.double()
    return scale, shift


def grouped_inputs(weight: Tensor, groups: int) -> Tensor:
    """A convolution's weight (O, I / groups, ...) as (groups, O / groups, I / groups, taps): a view where it can be one."""
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def pads_nothing(node: Node) -> bool:
    """Whether a convolution's result never depends on padding: it has none at the beginning, and no window reaches the end's."""
    padding = node.attrs.get("padding", 0)
    begins = (padding,) if isinstance(padding, int) else () if isinstance(padding, str) else tuple(padding)
    if any(begins):
        return False
    kernel, given, result = node.operands["weight"].sizes[2:], node.input.sizes[2:], node.output.sizes[2:]
    strides, dilations = (_each(node.attrs.get(name, 1), len(kernel)) for name in ("stride", "dilation"))
    wanted = [(size - d * (k - 1) - 1) // s + 1 for size, k, s, d in zip(given, kernel, strides, dilations, strict=True)]
    return list(result) == wanted


def _each(value: int | tuple[int, ...], count: int) -> tuple[int, ...]:
    return (value,) * count if isinstance(value, int) else tuple(value) if len(value) == count else (value[0],) * count


def float_param(node: Node, role: str) -> Tensor | None:
    """A float parameter in a role; None if there is none, or if it is computed or quantised."""
    value = node.get(role)
    if value is None or value.data is None or not value.data.is_floating_point():
        return None
    return value.data.to(torch.float64)
