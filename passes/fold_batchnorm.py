"""Fold batch norms into the convolutions and linear layers before them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from irtool.ir.graph import G, Graph, Node
from irtool.ops.batch_norm import not_fixed, scale_and_shift
from irtool.ops.properties import AFFINE
from irtool.ops.rules.contraction import inputs_first
from irtool.passmanager import Pass, Rewritten, register


@register
@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Multiply each batch norm's scale into the weights before it. Exact in eval mode; the batch norm is gone for training.

    w' = w * gamma / sqrt(var + eps), b' = (b - mean) * gamma / sqrt(var + eps) + beta.

    Given:  %y = Conv(%x, @conv.weight); %z = BatchNormalization(%y, ...)
    Result: %z = Conv(%x, @conv.weight, @conv.bias)

    Left alone, with a note: a convolution whose output or weight has another reader, and a batch norm without statistics or
    with computed values.
    """

    name: ClassVar[str] = "fold_batchnorm"

    def rewrite(self, graph: G) -> Rewritten[G]:
        """Fold where it is exact."""
        new = graph.clone()
        readers = Counter(value.name for node in new.nodes for value in node.inputs if value.is_param)
        notes, folded = [], 0
        for node in list(new.nodes):
            if node.op != "BatchNormalization":
                continue
            why = _refusal(new, node, readers)
            if why is None:
                _fold(new, node)
                folded += 1
            elif why:
                notes.append(f"{node.location}: {why}")
        if not folded:
            return Rewritten(graph, notes)
        new.commit()
        return Rewritten(new, (f"{folded} batch norms folded", *notes))


def _refusal(graph: Graph, node: Node, readers: Counter[str]) -> str | None:
    """Return the reason for which a batch norm stays; empty for one that has no convolution before it."""
    source = node.input.producer
    if source is None or source.op not in AFFINE or not graph.accepts_bias(source):
        return ""
    weight = source.get("weight")
    if weight is None or not weight.is_param:
        return "the weight before it is computed"
    if weight.data is not None and not weight.data.is_floating_point():
        return "the weight before it is quantised"
    if len(node.input.uses) > 1:
        return f"{source.location} has another reader"
    bias = source.get("bias")
    if readers[weight.name] > 1 or (bias is not None and readers[bias.name] > 1):
        return f"the weight of {source.location} is shared"
    if bias is not None and not bias.is_param:
        return f"the bias of {source.location} is computed"
    if source.op == "Gemm" and len(node.input.sizes) != 2:
        return "a linear layer over more than two axes ends on another axis than the batch norm"
    return not_fixed(node)


def _fold(graph: Graph, node: Node) -> None:
    source = node.input.producer
    assert source is not None
    weight, bias = source.operands["weight"], source.get("bias")
    assert weight.data is not None
    scale, shift = scale_and_shift(node)
    old = bias.data.double() if bias is not None and bias.data is not None else torch.zeros_like(scale)
    groups = source.attrs.get("group", 1)
    graph.set_param(weight.name, _scaled(weight.data.double(), scale, groups, inputs_first(source)).to(weight.data.dtype))
    new_bias = (old * scale + shift).to(weight.data.dtype)
    if bias is not None:
        graph.set_param(bias.name, new_bias)
    else:
        graph.give_bias(source, new_bias, f"folded_{source.name}")
    graph.bypass(node)


def _scaled(weight: Tensor, scale: Tensor, groups: int, transposed: bool) -> Tensor:
    """Scale the output channels: axis 0, or within each group axis 1 of a weight whose inputs come first."""
    if not transposed:
        return weight * scale.reshape(-1, *(1,) * (weight.dim() - 1))
    blocks = weight.reshape(groups, -1, *weight.shape[1:])
    return (blocks * scale.reshape(groups, 1, -1, *(1,) * (weight.dim() - 2))).reshape(weight.shape)


def fold_batchnorm(graph: G) -> G:
    """Fold batch norms; see `FoldBatchNorm`. The caller's graph is not changed."""
    return FoldBatchNorm()(graph).graph
