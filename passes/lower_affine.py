"""Turn what scales and shifts channels into a depthwise 1x1 convolution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import onnx_graphsurgeon as gs
import torch

from irtool.hosts.onnx.affine import Affine, channel_affine, flowing, only_reader
from irtool.hosts.onnx.graph import OnnxGraph
from irtool.ir.graph import G, Value
from irtool.passmanager import Pass, Rewritten, onnx_only, register

_FLOATS: Mapping[torch.dtype | None, type[np.floating[Any]]] = {
    torch.float16: np.float16,
    torch.float32: np.float32,
}
"""What engines have convolutions in."""


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
        new = onnx_only(graph, self.name).clone()
        values = {value.name: value for node in new.nodes for value in (*node.inputs, *node.outputs)}
        lowered, done = 0, set[int]()
        for node in list(new.host.nodes):
            chain, found = _chain(new.host, node, values) if id(node) not in done else ([], None)
            done.update(map(id, chain))
            if found is None or (len(chain) == 1 and not self._worth(chain[0])):
                continue
            _replace(new, chain, found, _FLOATS[values[chain[0].outputs[0].name].dtype])
            lowered += 1
        if not lowered:
            return Rewritten(graph)
        new.tidied()
        return Rewritten(cast(G, new), (f"{lowered} chains of scale and shift became depthwise convolutions",))

    def _worth(self, node: gs.Node) -> bool:
        if node.op == "BatchNormalization":
            return True
        constant = next(tensor for tensor in node.inputs if isinstance(tensor, gs.Constant))
        return self.arithmetic and int(np.prod(constant.shape)) > 1


def _chain(host: gs.Graph, node: gs.Node, values: Mapping[str, Value]) -> tuple[list[gs.Node], Affine | None]:
    """The longest chain that begins here, and what it does."""
    chain: list[gs.Node] = []
    total: Affine | None = None
    current: gs.Node | None = node
    while current is not None:
        made = values.get(current.outputs[0].name) if len(current.outputs) == 1 else None
        shape = made.shape if made is not None and made.dtype in _FLOATS else None
        step = channel_affine(current, shape[1], 4) if shape is not None and len(shape) == 4 else None
        if step is None or (read := values.get(flowing(current).name)) is None or read.shape != shape:
            break
        total = step if total is None else (total[0] * step[0], total[1] * step[0] + step[1])
        chain.append(current)
        current = only_reader(host, current.outputs[0])
    return chain, total


def _replace(graph: OnnxGraph, chain: list[gs.Node], found: Affine, kind: type[np.floating[Any]]) -> None:
    first, last = chain[0], chain[-1]
    scale, shift = (values.astype(kind) for values in found)
    name = last.name or last.outputs[0].name
    weight = gs.Constant(graph.free_name(f"{name}.scale"), scale.reshape(-1, 1, 1, 1))
    bias = gs.Constant(graph.free_name(f"{name}.shift"), shift)
    source, output = flowing(first), last.outputs[0]
    at = graph.host.nodes.index(first)
    for node in chain:
        node.inputs.clear()
        node.outputs.clear()
        graph.host.nodes.remove(node)
    attributes = {"group": len(scale), "kernel_shape": [1, 1]}
    graph.host.nodes.insert(at, gs.Node("Conv", name, attributes, [source, weight, bias], [output]))
