"""Turn what scales and shifts channels into a depthwise 1x1 convolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from irtool.ir.graph import G, Graph, Node
from irtool.ops.affine import channel_affine
from irtool.passmanager import Pass, Rewritten, onnx_only, register

_FLOATS = frozenset({torch.float16, torch.float32})
"""Types in which engines have convolutions."""


@register
@dataclass(frozen=True)
class LowerAffine(Pass):
    """Write chains of batch norm, Mul, Add, Sub and Div by constants as one depthwise convolution. Exact.

    No engine has a batch norm in integers, so one that cannot be folded (its input is a stream with other readers) costs a
    step out of integers and back. A depthwise 1x1 convolution is the same function; engines have it in integers, with the
    ReLU behind it, and since each channel has one weight and one scale of its own, rounding the weight loses nothing.

    Given:  %a = BatchNormalization(%x, ...); %b = Mul(%a, @c)
    Result: %b = Conv(%x, @scale, @shift) {group: channels, kernel 1x1}

    Left alone: images of other than two dimensions or in other types than float32 and float16, and a chain of one Add, Sub, Mul
    or Div by a single number.

    Args:
        arithmetic: whether a chain without a batch norm is lowered too.
    """

    name: ClassVar[str] = "lower_affine"
    arithmetic: bool = True

    def rewrite(self, graph: G) -> Rewritten[G]:
        """Lower every chain.

        Raises:
            OptionError: the graph is not an ONNX graph.
        """
        onnx_only(graph, self.name)
        new, lowered, done = graph.clone(), 0, set[Node]()
        for node in new.nodes:
            chain, total = _chain(new, node) if node not in done else ([], None)
            done.update(chain)
            if total is not None and (len(chain) > 1 or self._worth(chain[0])):
                _replace(new, chain, *total)
                lowered += 1
        if not lowered:
            return Rewritten(graph)
        new.commit()
        return Rewritten(new, (f"{lowered} chains of scale and shift became depthwise convolutions",))

    def _worth(self, node: Node) -> bool:
        several = any(value.is_param and torch.Size(value.sizes).numel() > 1 for value in node.inputs)
        return node.op == "BatchNormalization" or (self.arithmetic and several)


def _chain(graph: Graph, node: Node) -> tuple[list[Node], tuple[Tensor, Tensor] | None]:
    """The longest chain that begins here, and what it does: the scale and the shift of each channel."""
    chain: list[Node] = []
    total: tuple[Tensor, Tensor] | None = None
    current: Node | None = node
    while current is not None:
        step = channel_affine(graph, current) if _is_image(current) else None
        if step is None:
            break
        total = step if total is None else (total[0] * step[0], total[1] * step[0] + step[1])
        chain.append(current)
        current = graph.only_reader(current.output)
    return chain, total


def _is_image(node: Node) -> bool:
    """Whether a node makes one batch of images, of the size that it reads, in a type that engines have convolutions in."""
    if len(node.outputs) != 1 or not node.operands:
        return False
    shape = node.output.shape
    return shape is not None and len(shape) == 4 and node.output.dtype in _FLOATS and any(value.shape == shape for value in node.inputs)


def _replace(graph: Graph, chain: list[Node], scale: Tensor, shift: Tensor) -> None:
    last, kind = chain[-1], chain[-1].output.dtype
    name = last.name or last.output.name
    weight = graph.add_param(f"{name}.scale", scale.to(kind).reshape(-1, 1, 1, 1))
    bias = graph.add_param(f"{name}.shift", shift.to(kind))
    for node in chain[:-1]:
        graph.bypass(node)
    source = next(value for value in last.inputs if not value.is_param)
    attributes = {"group": len(scale), "kernel_shape": [1, 1]}
    conv = graph.insert("Conv", [source, weight, bias], attributes, before=last, name=name)
    graph.replace_uses(last.output, conv.output)
    graph.erase(last)
