"""The reference where channels are mixed: each such step sees the surviving channels alone, gathered out of the full tensor."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import irtool
from irtool.hosts.torch.interpreter import difference
from irtool.ops.context import varying
from irtool.pruning.masked import MaskedRun
from irtool.pruning.plan_rewrite import find_rewrite


class SurvivingRun(MaskedRun):
    """Runs the original masked, except that norms, softmaxes and reductions over channels get the surviving channels only."""

    def run_node(self, n: fx.Node) -> Any:
        self._now = n.name
        return super().run_node(n)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        kept, args = self._gathered(args)
        node = self._nodes.get(self._now)
        if kept is not None and node is not None and node.op == "LayerNormalization":
            weight, bias = (node.operands[role].data[kept[1]] for role in ("weight", "bias"))
            return self._scattered(F.layer_norm(args[0], (len(kept[1]),), weight, bias, node.attrs["eps"]), kept)
        return self._scattered(super().call_function(target, args, kwargs), kept)

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        kept, args = self._gathered(args)
        return self._scattered(super().call_method(target, args, kwargs), kept)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        kept, gathered = self._gathered(args)
        if kept is None:
            return super().call_module(target, args, kwargs)
        return self._scattered(_norm(self.module.get_submodule(target), gathered[0], kept[1]), kept)

    def _gathered(self, args: tuple[Any, ...]) -> tuple[tuple[int, Tensor, int] | None, tuple[Any, ...]]:
        """The surviving positions of the mixed axis (axis, positions, full size), and the arguments with them alone."""
        if all(node.name != self._now for node, _, _ in self._labels.inexacts):
            return None, args
        node = self._nodes[self._now]
        parts = [part for part in self._labels.parts(node.input) if varying(part)]
        labels = parts[0] if len(parts) == 1 else next(part for part in parts if varying(part) == [node.attrs["dim"] % part.dim()])
        (axis,) = varying(labels)
        positions = self._keep[labels.reshape(-1)].nonzero()[:, 0]
        return (axis, positions, args[0].shape[axis]), (args[0].index_select(axis, positions), *args[1:])

    def _scattered(self, result: Any, kept: tuple[int, Tensor, int] | None) -> Any:
        if (
            kept is None
            or not isinstance(result, Tensor)
            or kept[0] >= result.dim()
            or result.shape[kept[0]] != len(kept[1])
            or self._reduces()
        ):
            return result
        axis, positions, size = kept
        shape = [size if d == axis else n for d, n in enumerate(result.shape)]
        return torch.zeros(shape, dtype=result.dtype).index_copy(axis, positions, result)

    def _reduces(self) -> bool:
        return self._nodes[self._now].op == "Reduce"


def _norm(module: nn.Module, x: Tensor, positions: Tensor) -> Tensor:
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(x, module.num_groups, module.weight[positions], module.bias[positions], module.eps)
    if not isinstance(module, nn.LayerNorm):
        return module(x)
    return F.layer_norm(x, (len(positions),), module.weight[positions], module.bias[positions], module.eps)


def surviving_error(graph: irtool.FxGraph, plan: irtool.Plan) -> float:
    """Relative difference between the sliced graph and the surviving channels of the original."""
    rewrite = find_rewrite(graph, plan)
    sliced = irtool.prune(graph, plan, constants="drop")
    with torch.no_grad():
        expected = SurvivingRun(rewrite.labels.graph, rewrite.labels, torch.from_numpy(rewrite.keep)).run(*graph.example_inputs)
    return difference(expected, sliced.run(*graph.example_inputs))[1]
