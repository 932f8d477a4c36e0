"""Inputs and outputs of a layer at sampled positions of its output, as rows of a linear regression.

A convolution gives at each position a linear function of the window that it reads there. Grouped convolutions are as
many regressions side by side as they have groups; a depthwise one has a group for each channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from irtool.ir.graph import Node
from irtool.ops.properties import WINDOWED
from irtool.ops.rules.contraction import inputs_first
from irtool.pruning.absorb.contribution import channel_axis, padded, weight_of


@dataclass(frozen=True)
class Positions:
    """Sampled positions of a layer's output over one batch.

    Attributes:
        places: indices into the output's entries with the channel axis left out, int64, shape (rows,).
        images: which image of the batch each is of, int64, shape (rows,).
    """

    places: Tensor
    images: Tensor


def sample(count: int, images: int, each: int, generator: torch.Generator) -> Positions:
    """Draw positions, equally many of each image.

    Args:
        count: how many positions the output has over the batch.
        images: how many images the batch has; where they do not divide the positions evenly, all are drawn from together.
        each: at most so many of each image.
        generator: of the draw, on the CPU.
    """
    parts = images if images and count % images == 0 else 1
    size, wanted = count // parts, each * max(images, 1) // parts
    if size <= wanted:
        chosen = torch.arange(size).expand(parts, size)
    else:
        chosen = torch.rand(parts, size, generator=generator).topk(wanted, sorted=False).indices.sort().values
    number = torch.arange(parts)[:, None].expand_as(chosen)
    return Positions((chosen + number * size).reshape(-1), number.reshape(-1))


def outputs_at(node: Node, value: Tensor, places: Tensor, kept: Tensor | None = None) -> Tensor:
    """A value of the shape of a layer's output, at positions of it: (rows, channels).

    Args:
        node: the layer.
        value: its output, or what is computed from it channel by channel.
        places: see `Positions`.
        kept: the channels wanted, in that order; all if left out.
    """
    axis = channel_axis(node, node.output) - len(node.output.sizes) + value.dim()
    table = value.movedim(axis, -1).flatten(0, -2)[places.to(value.device)]
    return table if kept is None else table.index_select(1, kept.to(value.device))


def inputs_at(node: Node, x: Tensor, made: tuple[int, ...], places: Tensor) -> Tensor:
    """Gather the inputs of each position of a layer's output: (rows, groups, inputs of a group times taps).

    Args:
        node: a convolution or linear layer.
        x: its input.
        made: the sizes of its output for that input.
        places: see `Positions`.
    """
    places = places.to(x.device)
    if node.op not in WINDOWED:
        return x.flatten(0, -2)[places][:, None]
    weight = weight_of(node)
    assert weight is not None
    axes = len(weight.sizes) - 2
    x = x if x.dim() == axes + 2 else x[None]
    x, start = padded(node, x)
    size = torch.Size(made[-axes:]).numel()
    image, inside = places // size, places % size
    flat = torch.zeros(len(places), 1, dtype=torch.int64, device=x.device)
    read = torch.ones_like(flat, dtype=torch.bool)
    for axis, coordinate in enumerate(torch.unravel_index(inside, made[-axes:])):
        table = _taps(node, axis, x.shape[2 + axis], made[len(made) - axes + axis], start).to(x.device)[coordinate]
        flat = (flat[:, :, None] * x.shape[2 + axis] + table.clamp(min=0)[:, None]).flatten(1)
        read = (read[:, :, None] & (table >= 0)[:, None]).flatten(1)
    windows = x.flatten(2)[image[:, None], :, flat]  # (rows, taps, channels)
    windows = windows * read[:, :, None]
    groups = node.attrs.get("group", 1)
    return windows.transpose(1, 2).reshape(len(places), groups, -1)


def _taps(node: Node, axis: int, read: int, made: int, start: tuple[int, ...] | None) -> Tensor:
    """Along one axis: the place in the input that each tap reads for each place of the output, (made, taps); -1 for none."""
    weight = weight_of(node)
    assert weight is not None
    stride, dilation = (node.attrs[name][axis] for name in ("strides", "dilations"))
    padding = (node.attrs["pads"] if start is None else start)[axis]
    place, tap = torch.arange(made)[:, None], torch.arange(weight.sizes[2 + axis])[None] * dilation
    if inputs_first(node):  # place = input * stride + tap - padding
        found = place + padding - tap
        reads = (found % stride == 0) & (found >= 0) & (found // stride < read)
        return torch.where(reads, found // stride, -1)
    found = place * stride + tap - padding
    return torch.where((found >= 0) & (found < read), found, -1)


def as_blocks(node: Node, weight: Tensor) -> Tensor:
    """A layer's weight as one matrix a group, of the order of `inputs_at`: (groups, outputs, inputs times taps)."""
    groups = node.attrs.get("group", 1)
    if not inputs_first(node):
        return weight.reshape(groups, weight.shape[0] // groups, -1)
    split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return split.transpose(1, 2).flatten(2)


def from_blocks(node: Node, blocks: Tensor, like: Tensor) -> Tensor:
    """The inverse of `as_blocks`, in the shape and type of `like`."""
    if inputs_first(node):
        groups, outputs = blocks.shape[:2]
        blocks = blocks.reshape(groups, outputs, like.shape[0] // groups, -1).transpose(1, 2)
    return blocks.reshape(like.shape).to(like)
