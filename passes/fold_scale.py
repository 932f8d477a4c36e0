"""Fold products with a constant for each channel into the convolutions and linear layers before them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from irtool.ir.graph import G, Node, Value
from irtool.ops.properties import AFFINE
from irtool.ops.rules.contraction import channel_axis, inputs_first
from irtool.passmanager import Pass, Rewritten, register


@register
@dataclass(frozen=True)
class FoldScale(Pass):
    """Multiply a constant scale of each channel, as LayerScale has it, into the weights before it. Exact.

    w'[o] = scale[o] * w[o], b'[o] = scale[o] * b[o]. After Touvron et al. (2021, arXiv:2103.17239), whose LayerScale such a product is.

    Given:  %y = Conv(%x, @w, @b); %z = Mul(%y, @scale)
    Result: %z = Conv(%x, @w, @b), weights and biases scaled

    Left alone, with a note: a layer whose output, weight or bias has another reader, or is computed. Without a note: scales of
    positions, and what stands behind no layer.
    """

    name: ClassVar[str] = "fold_scale"

    def rewrite(self, graph: G) -> Rewritten[G]:
        """Fold where it is exact."""
        new = graph.clone()
        folded, notes = 0, []
        for node in list(new.nodes):
            found = _scaling(node)
            if found is None:
                continue
            layer, scale = found
            held = [value for value in (layer.get("weight"), layer.get("bias")) if value is not None]
            why = _refusal(layer, held)
            if why:
                notes.append(f"{node.location}: {why}")
                continue
            for value in held:
                assert value.data is not None
                new.set_param(value.name, _scaled(layer, value.data.double(), scale).to(value.data.dtype))
            new.bypass(node)
            folded += 1
        if not folded:
            return Rewritten(graph, notes)
        new.commit()
        return Rewritten(new, (f"{folded} scales folded", *notes))


def _scaling(node: Node) -> tuple[Node, Tensor] | None:
    """The layer before a product, and the scale of each of its outputs, float64 (outputs,); None where it is not that."""
    flowing, held = ([value for value in node.inputs if value.is_param is known] for known in (False, True))
    layer = flowing[0].producer if node.op == "Mul" and len(flowing) == len(held) == 1 else None
    if layer is None or layer.op not in AFFINE or held[0].data is None or not held[0].data.is_floating_point():
        return None
    weight, rank = layer.get("weight"), len(flowing[0].sizes)
    axis = channel_axis(layer, weight) if layer.op != "Gemm" and weight is not None else rank - 1
    data = held[0].data.double()
    data = data.reshape((1,) * (rank - data.dim()) + tuple(data.shape)) if data.dim() <= rank else data
    channels = flowing[0].sizes[axis]
    fits = data.dim() == rank and all(size == 1 or (place == axis and size == channels) for place, size in enumerate(data.shape))
    return (layer, data.reshape(-1).expand(channels)) if fits else None


def _refusal(layer: Node, held: list[Value]) -> str:
    """Return the reason for which a layer's weights stay as they are; empty if they may be scaled."""
    if len(layer.output.uses) > 1:
        return f"{layer.location} has another reader"
    if not all(value.is_param and value.data is not None and value.data.is_floating_point() for value in held):
        return f"a weight of {layer.location} is computed or quantised"
    return f"a weight of {layer.location} is shared" if any(len(value.uses) > 1 for value in held) else ""


def _scaled(layer: Node, data: Tensor, scale: Tensor) -> Tensor:
    """A weight with its outputs scaled, or a bias."""
    if data.dim() == 1:
        return data * scale
    if not inputs_first(layer):
        return data * scale.reshape(-1, *(1,) * (data.dim() - 1))
    groups = layer.attrs.get("group", 1)
    blocks = data.reshape(groups, -1, *data.shape[1:])
    return torch.mul(blocks, scale.reshape(groups, 1, -1, *(1,) * (data.dim() - 2))).reshape(data.shape)
