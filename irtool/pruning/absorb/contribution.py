"""Contribution of constant inputs to the outputs of a convolution or linear layer, on average over the positions of its output."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from irtool.ir.graph import Node, Value
from irtool.ops.properties import WINDOWED
from irtool.ops.rules import contraction
from irtool.ops.rules.contraction import inputs_first


def weight_of(node: Node) -> Value | None:
    """The weight of a layer; the second factor of a product."""
    return node.inputs[-1] if node.op == "MatMul" else node.get("weight")


def channel_axis(node: Node, value: Value) -> int:
    """The axis of a layer's input or output that carries its channels."""
    weight = weight_of(node)
    return contraction.channel_axis(node, weight) if node.op in WINDOWED and weight is not None else len(value.sizes) - 1


def outputs(node: Node) -> int:
    """Count the channels that a layer makes."""
    return node.output.sizes[channel_axis(node, node.output)]


def has_plain_window(node: Node) -> bool:
    """Whether the attributes say where every tap of a convolution falls: not where ONNX computes padding from the sizes."""
    return node.op != "ConvTranspose" or not node.attrs.get("auto_pad", False)


def gain(node: Node, mean: Tensor, share: Tensor) -> Tensor:
    """Compute what each output gains: the sum over inputs and taps of weight times mean, each tap for its share of the positions.

    Args:
        node: a convolution or linear layer with a weight that is a parameter.
        mean: of each input channel, float64, shape (I,).
        share: of the output positions, for each tap, as `shares` gives it.

    Returns:
        float64, shape (O,).
    """
    value = weight_of(node)
    assert value is not None
    assert value.data is not None
    weight, groups = value.data.double().cpu(), node.attrs.get("group", 1)
    if node.op in WINDOWED:
        weight = (weight * share).flatten(2).sum(2)
    if inputs_first(node):
        blocks = weight.reshape(groups, -1, weight.shape[1]).transpose(1, 2)
    else:
        blocks = weight.reshape(groups, -1, weight.shape[1])
    return torch.einsum("goi,gi->go", blocks, mean.reshape(groups, -1)).reshape(-1)


def shares(node: Node) -> Tensor:
    """For each tap of a kernel, the share of output positions at which it counts; float64, of the kernel's shape, () without one.

    A tap that falls on zero padding adds nothing. In a transposed convolution a stride keeps taps from most positions. At
    the example's size.
    """
    value = weight_of(node)
    assert value is not None
    kernel = value.sizes[2:] if node.op in WINDOWED else ()
    share = torch.ones(kernel, dtype=torch.float64)
    if not kernel or wraps(node):
        return share
    transposed = inputs_first(node)
    stride, dilation, padding = (node.attrs[name] for name in ("strides", "dilations", "pads"))
    first = channel_axis(node, node.input) + 1
    for axis, taps in enumerate(kernel):
        read, made = node.input.sizes[first + axis], node.output.sizes[first + axis]
        moves, bound = (read, made) if transposed else (made, read)
        place = torch.arange(moves)[None] * stride[axis] + torch.arange(taps)[:, None] * dilation[axis] - padding[axis]
        counted = ((place >= 0) & (place < bound)).double().sum(1) / made
        share = share * counted.reshape([-1 if d == axis else 1 for d in range(len(kernel))])
    return share


def wraps(node: Node) -> bool:
    """Whether padding repeats the image (reflect, replicate, circular), so that every tap reads a channel everywhere."""
    return "pad_mode" in node.attrs


def padded(node: Node, x: Tensor) -> tuple[Tensor, tuple[int, ...] | None]:
    """A convolution's input with its padding put on, and the padding that is left to do, where that repeats the image; else the input, and None."""
    if not wraps(node):
        return x, None
    axes, pads = len(node.attrs["strides"]), node.attrs["pads"]
    amounts = [amount for axis in reversed(range(axes)) for amount in (pads[axis], pads[axes + axis])]
    return functional.pad(x, amounts, str(node.attrs["pad_mode"])), (0,) * axes
