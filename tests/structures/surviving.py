"""The reference where channels are mixed: each such step sees the surviving channels alone, gathered out of the full tensor."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import irtool
from irtool.analysis.compare import difference
from irtool.ir.graph import Node, Value
from irtool.ir.hooks import Compute
from irtool.ops.rules.context import varying
from irtool.pruning.slicing.masked import Masking
from irtool.pruning.slicing.plan_slicing import find_slicing


class Surviving(Masking):
    """Masks like its base, except that norms, softmaxes and reductions over channels get the surviving channels only."""

    def _computed(self, node: Node, own: Node, reads: Mapping[Value, Tensor], compute: Compute) -> list[Tensor]:
        if all(mixing.name != own.name for mixing, _, _ in self._labels.inexacts):
            return super()._computed(node, own, reads, compute)
        x = reads[node.input]
        parts = [part for part in self._labels.parts(own.input) if varying(part)]
        labels = parts[0] if len(parts) == 1 else next(part for part in parts if varying(part) == [own.attrs["axis"]])
        (axis,) = varying(labels)
        positions = self._keep[labels.reshape(-1)].nonzero()[:, 0]
        module, alone = self._labels.graph.holder(own), x.index_select(axis, positions)
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            result = _norm(module, alone, positions)
        elif own.op == "LayerNormalization":
            weight, bias = (own.operands[role].data[positions] for role in ("weight", "bias"))
            result = F.layer_norm(alone, (len(positions),), weight, bias, own.attrs["epsilon"])
        else:
            result, *rest = compute({node.input: alone})
            if rest:  # a maximum over channels, and where it lies
                return [result, *rest]
        if axis >= result.dim() or result.shape[axis] != len(positions) or own.op == "Reduce":
            return [result]
        shape = [x.shape[axis] if d == axis else n for d, n in enumerate(result.shape)]
        return [torch.zeros(shape, dtype=result.dtype).index_copy(axis, positions, result)]


def _norm(module: nn.GroupNorm | nn.LayerNorm, x: Tensor, positions: Tensor) -> Tensor:
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(x, module.num_groups, module.weight[positions], module.bias[positions], module.eps)
    return F.layer_norm(x, (len(positions),), module.weight[positions], module.bias[positions], module.eps)


def surviving_error(graph: irtool.FxGraph, plan: irtool.Plan) -> float:
    """Relative difference between the sliced graph and the surviving channels of the original."""
    slicing = find_slicing(graph, plan)
    sliced = irtool.prune(graph, plan, constants="drop")
    with torch.no_grad():
        hook = Surviving(slicing.labels.graph, slicing.labels, torch.from_numpy(slicing.keep), inputs=graph.example_inputs)
        expected = slicing.labels.graph.run_hooked(graph.example_inputs, hook)
    return difference(expected, sliced.run(*graph.example_inputs))[1]
