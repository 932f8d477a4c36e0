"""Rounding in training: values are rounded as a file's integers round them, and gradients pass as if they were not."""

from __future__ import annotations

import torch
from torch import Tensor

from irtool.quant.affine import Affine
from irtool.quant.weights import steps_of


def rounded_activation(x: Tensor, to: Affine) -> Tensor:
    """Round a tensor's values to integers of a grid; gradients pass where the grid reaches."""
    return torch.fake_quantize_per_tensor_affine(x, to.scale, to.zero_point, to.grid.low, to.grid.high)


def rounded_weight(weight: Tensor, axis: int, bits: int, from_least: bool) -> Tensor:
    """Round a weight as its file stores it, with a scale for each output channel.

    Args:
        weight: of a layer.
        axis: of its output channels.
        bits: 2 to 8.
        from_least: whether integers count up from the channel's least value; else they are symmetric, to its largest magnitude.
    """
    steps, rows = steps_of(bits), weight.detach().movedim(axis, 0).flatten(1)
    shape = [-1 if place == axis else 1 for place in range(weight.dim())]
    if not from_least:
        scales = (rows.abs().amax(1) / steps).clamp(min=torch.finfo(torch.float32).tiny)
        zeros = torch.zeros(len(scales), dtype=torch.int32, device=weight.device)
        return torch.fake_quantize_per_channel_affine(weight, scales, zeros, axis, -steps, steps)
    least = rows.amin(1).reshape(shape)
    scale = ((rows.amax(1) - rows.amin(1)) / (2**bits - 1)).clamp(min=torch.finfo(torch.float32).tiny).reshape(shape)
    found = torch.round((weight.detach() - least) / scale) * scale + least
    return weight + (found - weight).detach()
