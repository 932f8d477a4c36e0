"""Fold batch norms into the convolutions and linear layers before them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from irtool.ir.fx_graph import FxGraph
from irtool.ir.fx_module import set_attribute
from irtool.ir.graph import Node
from irtool.passmanager import Pass, PassResult, register

_FOLDABLE = frozenset({"Conv", "ConvTranspose", "Gemm"})


@register
@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Multiply each batch norm's scale into the weights before it. Exact in eval mode; the batch norm is gone for training.

    w' = w * gamma / sqrt(var + eps), b' = (b - mean) * gamma / sqrt(var + eps) + beta.

    Given:  %y = Conv(%x, @conv.weight); %z = BatchNormalization(%y, ...)
    Result: %z = Conv(%x, @conv.weight, @conv.bias)

    Left alone, with a note: a convolution whose output or weight has another reader, and a batch norm without statistics.
    """

    name: ClassVar[str] = "fold_batchnorm"

    def __call__(self, graph: FxGraph) -> PassResult:
        """Fold where it is exact."""
        new = graph.clone()
        readers = Counter(value.name for node in new.nodes for value in node.inputs if value.is_param)
        notes, folded = [], 0
        for node in list(new.nodes):
            if node.op != "BatchNormalization":
                continue
            why = _refusal(node, readers)
            if why is None:
                _fold(new, node)
                folded += 1
            elif why:
                notes.append(f"{node.location}: {why}")
        if not folded:
            return PassResult(graph, False, tuple(notes))
        new.module.graph.lint()
        new.module.delete_all_unused_submodules()
        new.module.recompile()
        new.refresh()
        new.history = (*graph.history, {"step": "fold_batchnorm"})
        return PassResult(new, True, (f"{folded} batch norms folded", *notes))


def _refusal(node: Node, readers: Counter[str]) -> str | None:
    """Why a batch norm stays; an empty reason for one that simply has no convolution before it."""
    source = node.input.producer
    if source is None or source.op not in _FOLDABLE or source.host.op not in ("call_module", "call_function"):
        return ""
    weight = source.get("weight")
    if weight is None or not weight.is_param:
        return "the weight before it is computed"
    if len(node.input.uses) > 1:
        return f"{source.location} has another reader"
    bias = source.get("bias")
    if readers[weight.name] > 1 or (bias is not None and readers[bias.name] > 1):
        return f"the weight of {source.location} is shared"
    if bias is not None and not bias.is_param:
        return f"the bias of {source.location} is computed"
    if node.get("running_mean") is None or node.get("running_var") is None:
        return "it keeps no running statistics"
    if source.op == "Gemm" and len(node.input.sizes) != 2:
        return "a linear layer over more than two axes ends on another axis than the batch norm"
    return None


def _fold(graph: FxGraph, node: Node) -> None:
    source = node.input.producer
    assert source is not None
    weight, bias = source.operands["weight"], source.get("bias")
    assert weight.data is not None
    scale, shift = scale_and_shift(node)
    old = bias.data.double() if bias is not None and bias.data is not None else torch.zeros_like(scale)
    groups = int(source.attrs.get("groups") or 1)
    graph.set_param(weight.name, _scaled(weight.data.double(), scale, groups, source.op == "ConvTranspose").to(weight.data.dtype))
    new_bias = (old * scale + shift).to(weight.data.dtype)
    if bias is not None:
        graph.set_param(bias.name, new_bias)
    else:
        _give_bias(graph, source, new_bias)
    node.host.replace_all_uses_with(source.host)
    graph.module.graph.erase_node(node.host)


def scale_and_shift(node: Node) -> tuple[Tensor, Tensor]:
    """A batch norm as y = scale * x + shift, float64, shapes (channels,)."""
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


def _scaled(weight: Tensor, scale: Tensor, groups: int, transposed: bool) -> Tensor:
    """Scale the output channels: axis 0, or within each group axis 1 of a transposed convolution."""
    if not transposed:
        return weight * scale.reshape(-1, *(1,) * (weight.dim() - 1))
    blocks = weight.reshape(groups, -1, *weight.shape[1:])
    return (blocks * scale.reshape(groups, 1, -1, *(1,) * (weight.dim() - 2))).reshape(weight.shape)


def _give_bias(graph: FxGraph, source: Node, data: Tensor) -> None:
    if source.host.op == "call_module":
        set_attribute(graph.module, f"{source.host.target}.bias", nn.Parameter(data))
        return
    path = f"folded_{source.name}"
    graph.module.register_parameter(path, nn.Parameter(data))
    with graph.module.graph.inserting_before(source.host):
        attribute = graph.module.graph.get_attr(path)
    source.host.args = (*source.host.args[:2], attribute, *source.host.args[3:])
    source.host.kwargs = {key: value for key, value in source.host.kwargs.items() if key != "bias"}


def fold_batchnorm(graph: FxGraph) -> FxGraph:
    """Fold batch norms; see `FoldBatchNorm`. The caller's graph is not changed."""
    return FoldBatchNorm()(graph).graph
