"""Fold batch norms into the convolutions and linear layers behind them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from irtool.ir.graph import G, Graph, Node
from irtool.ops.batch_norm import float_param, grouped_inputs, not_fixed, pads_nothing, scale_and_shift
from irtool.ops.rules.contraction import inputs_first
from irtool.passmanager import Pass, Rewritten, register


@register
@dataclass(frozen=True)
class FoldNormForward(Pass):
    """Multiply a batch norm's scale into the weights behind it, and what its shift adds into the bias. Exact in eval mode.

    w'[o, i] = w[o, i] * scale[i], b'[o] = b[o] + sum over i and taps of w[o, i] * shift[i].

    Given:  %b = BatchNormalization(%x, ...); %y = Conv(%b, @w)
    Result: %y = Conv(%x, @w, @bias)

    Left alone, with a note: a shift that is not 0 before a convolution with zero padding. The padding is 0 *behind* the shift,
    so at the border less is added than the bias would. So is a batch norm without statistics or with computed values, and one
    between which and its layer something works in place: the layer would read what that leaves.
    """

    name: ClassVar[str] = "fold_norm_forward"

    def rewrite(self, graph: G) -> Rewritten[G]:
        """Fold where it is exact."""
        readers = Counter(value.name for node in graph.nodes for value in node.inputs if value.is_param)
        notes, chosen = [], []
        for node in graph.nodes:
            if node.op != "BatchNormalization":
                continue
            why = _refusal(graph, node, readers)
            if why is None:
                chosen.append(node.name)
            elif why:
                notes.append(f"{node.location}: {why}")
        if not chosen:
            return Rewritten(graph, notes)
        done = f"{len(chosen)} batch norms folded into the layers behind them"
        return Rewritten(fold_named(graph, chosen), (done, *notes), {"folded": chosen})

    @classmethod
    def replay(cls, graph: G, step: Mapping[str, Any]) -> G:
        """Fold the batch norms that were folded, whatever their values are now."""
        return fold_named(graph, step["folded"])


def fold_named(graph: G, names: Sequence[str]) -> G:
    """Fold these batch norms, whatever their values: a copy. The layers behind them have biases afterwards."""
    new = graph.clone()
    for name in names:
        node = new.node(name)
        _fold(new, node, node.output.uses[0])
    new.commit()
    return new


def _refusal(graph: Graph, node: Node, readers: Counter[str]) -> str | None:
    """Return the reason for which a batch norm stays; empty for one that has no layer right behind it."""
    uses = node.output.uses
    if len(uses) != 1 or node.output in graph.outputs or uses[0].op not in ("Conv", "Gemm") or uses[0].input is not node.output:
        return ""
    why = not_fixed(node)
    if why is not None:
        return why
    layer = uses[0]
    weight, bias = layer.get("weight"), layer.get("bias")
    if float_param(layer, "weight") is None or weight is None or not graph.accepts_bias(layer):
        return f"the weight of {layer.location} is computed or quantised"
    if readers[weight.name] > 1 or (bias is not None and readers[bias.name] > 1):
        return f"the weight of {layer.location} is shared"
    if bias is not None and float_param(layer, "bias") is None:
        return f"the bias of {layer.location} is computed"
    if layer.op == "Gemm" and len(node.input.sizes) != 2:
        return ""
    written = graph.writers(node, layer)
    if written:
        return f"{written[0]}, before {layer.location}, may write over what it reads"
    if layer.op == "Gemm":
        return None
    shifted = bool(scale_and_shift(node)[1].any())
    return f"{layer.location} pads with zeros" if shifted and not pads_nothing(layer) else None


def _fold(graph: Graph, node: Node, layer: Node) -> None:
    scale, shift = scale_and_shift(node)
    weight, old = layer.operands["weight"], float_param(layer, "bias")
    data = float_param(layer, "weight")
    assert data is not None
    if layer.op == "Gemm":
        rows = data.T if inputs_first(layer) else data  # (outputs, inputs)
        added, scaled = rows @ shift, rows * scale
        scaled = scaled.T if inputs_first(layer) else scaled
    else:
        groups = layer.attrs.get("group", 1)
        grouped, each = grouped_inputs(data, groups), (groups, 1, -1, 1)
        added = (grouped * shift.reshape(each)).sum((2, 3)).reshape(-1)
        scaled = (grouped * scale.reshape(each)).reshape(data.shape)
    kind = graph.params[weight.name].data
    assert kind is not None
    graph.set_param(weight.name, scaled.contiguous().to(kind.dtype))
    bias = ((old if old is not None else torch.zeros_like(added)) + added).to(kind.dtype)
    if old is not None:
        graph.set_param(layer.operands["bias"].name, bias)
    else:
        graph.give_bias(layer, bias, f"folded_{layer.name}")
    graph.bypass(node)
