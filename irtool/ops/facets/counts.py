"""How many channels an operator reads and makes, as its parameters say: (inputs, outputs)."""

from __future__ import annotations

from math import prod

from irtool.ir.graph import Node


def none(node: Node) -> tuple[int, int] | None:
    """An operator without channels of its own."""
    return None


def conv(node: Node) -> tuple[int, int] | None:
    """A convolution: groups share its inputs."""
    weight, groups = node.get("weight"), node.attrs.get("group", 1)
    if weight is None:
        return None
    first, second = weight.sizes[0], weight.sizes[1] * groups
    return (first, second) if node.op == "ConvTranspose" else (second, first)


def gemm(node: Node) -> tuple[int, int]:
    """A linear layer."""
    return node.operands["input"].sizes[-1], node.output.sizes[-1]


def norm(node: Node) -> tuple[int, int] | None:
    """A norm, or slopes: as many in as out."""
    held = [value for value in node.operands.values() if value.data is not None]
    return (prod(held[0].sizes),) * 2 if held else None


def select(node: Node) -> tuple[int, int]:
    """A channel selection."""
    return node.input.sizes[1], node.output.sizes[1]
