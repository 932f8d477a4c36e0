"""Estimate the statistics of batch norms anew, on a calibration set."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from irtool.analysis.run import steps
from irtool.errors import GraphError, OptionError
from irtool.ir.fx_graph import FxGraph
from irtool.ir.graph import G, Node
from irtool.passmanager import Pass, PassResult, register

Method = Literal["pooled", "exact"]


@register
@dataclass(frozen=True)
class RecalibrateBatchNorm(Pass):
    """Give each batch norm the mean and variance of what it reads on a calibration set. No weight is trained, no label needed.

    Removing channels moves what later batch norms read, and their stored statistics no longer fit. (Statistics measured anew are
    an old remedy; Li et al., 2020, "EagleEye", rank pruned nets by their accuracy after it.)

    Given:  %bn = BatchNormalization(%x, @bn.weight, @bn.bias, @bn.running_mean, @bn.running_var)
    Result: the same text; @bn.running_mean and @bn.running_var hold the mean and variance of %x over all calibration images

    Attributes:
        batches: inputs of the graph: a tensor, or a tuple of them, for each batch. More than one value a channel in all. Show
            images as training showed them (`data.sample(count, augment=...)`): padding and crops are part of the statistics.
        method: `"pooled"`: each batch is normalised by its own statistics on its way, as in training, and the moments of all
            batches are put together; memory for one batch. `"exact"`: all batches advance together, so that each batch norm
            reads what it will read in use; memory for all batches.
    """

    name: ClassVar[str] = "recalibrate_batchnorm"
    exact: ClassVar[bool] = False

    batches: Iterable[Any]
    method: Method = "pooled"

    def __post_init__(self) -> None:
        if self.method not in ("pooled", "exact"):
            raise OptionError(f"method {self.method!r} does not exist", remedy="Choose pooled or exact.")

    def __call__(self, graph: G) -> PassResult[G]:
        """Run the calibration set through a copy.

        Raises:
            GraphError: an ONNX graph, or a batch that does not fit.
            OptionError: no batches, or a single value a channel.
        """
        norms = [node for node in graph.nodes if _has_statistics(node)]
        left = [node.location for node in graph.nodes if node.op == "BatchNormalization" and not _has_statistics(node)]
        notes = tuple(f"{place}: it keeps no running statistics" for place in left)
        if not norms:
            return PassResult(graph, False, notes)
        new = graph.clone()
        if not isinstance(graph, FxGraph):
            raise GraphError("batch norms of an ONNX graph stay as they are", remedy="Recalibrate the torch model, then export it.")
        batches = [batch if isinstance(batch, tuple) else (batch,) for batch in self.batches]
        if not batches:
            raise OptionError("no calibration batches", remedy="Give some images: batches=data.sample(512).split(64).")
        found: dict[str, _Moments] = {}
        idle = _idle(graph, norms)
        for group in [batches] if self.method == "exact" else [[batch] for batch in batches]:
            _advance(idle, graph, group, found)
        for node in norms:
            mean, var = node.operands["running_mean"], node.operands["running_var"]
            assert mean.data is not None
            assert var.data is not None
            new.set_param(mean.name, found[mean.name].mean.to(mean.data))
            new.set_param(var.name, found[mean.name].unbiased().to(var.data))
        new.history = (*graph.history, {"step": "recalibrate_batchnorm"})
        return PassResult(new, True, (f"{len(norms)} batch norms recalibrated", *notes))


@dataclass
class _Moments:
    """Running mean and summed squared deviation of each channel, float64, by Chan, Golub and LeVeque's pairwise update."""

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    squares: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def add(self, x: Tensor) -> None:
        """Take in a tensor (N, C, ...)."""
        axes = [axis for axis in range(x.dim()) if axis != 1]
        var, mean = (part.double() for part in torch.var_mean(x, axes, correction=0))
        count = x.numel() // x.shape[1]
        total, away = self.count + count, mean - self.mean
        self.squares = self.squares + var * count + away.square() * (self.count * count / total)
        self.mean = self.mean + away * (count / total)
        self.count = total

    def unbiased(self) -> Tensor:
        """The variance that batch norm keeps: squares over count - 1."""
        if self.count < 2:
            raise OptionError("one value a channel has no variance", remedy="Give at least two images.")
        return self.squares / (self.count - 1)

    def biased(self) -> Tensor:
        """The variance that batch norm divides by in training."""
        return self.squares / self.count


def _has_statistics(node: Node) -> bool:
    return node.op == "BatchNormalization" and node.get("running_mean") is not None and node.get("running_var") is not None


def _idle(graph: FxGraph, norms: Sequence[Node]) -> FxGraph:
    """A copy whose batch norms pass on what they read, so that running it shows their inputs where their outputs were."""
    copy = graph.clone()
    for node in norms:
        eps = _eps(node)
        for role, value in (("running_mean", 0.0), ("running_var", 1 - eps), ("weight", 1.0), ("bias", 0.0)):
            param = node.get(role)
            if param is not None and param.data is not None:
                copy.set_param(param.name, torch.full_like(param.data, value))
    return copy


def _advance(idle: FxGraph, graph: FxGraph, group: Sequence[tuple[Any, ...]], found: dict[str, _Moments]) -> None:
    """Run batches side by side, from batch norm to batch norm; each is normalised by the moments of the whole group."""
    views = {node.name: node for node in graph.nodes}
    # A copy of what the batch norm read: its value is written over, and an operator that works in place may share it.
    runs = [
        _stops(steps(idle, batch, lambda node, _, value: value.clone() if node is not None and _has_statistics(node) else value))
        for batch in group
    ]
    for stopped in zip(*runs, strict=True):
        node = views[stopped[0][0].name]
        here, key = _Moments(), node.operands["running_mean"].name
        for _, value in stopped:
            here.add(value)
            found.setdefault(key, _Moments()).add(value)
        for _, value in stopped:
            _normalise(value, node, here, biased=len(group) == 1)


def _stops(run: Generator[Any, None, Any]) -> Iterator[tuple[Node, Tensor]]:
    for node, _, value in run:
        if node is not None and _has_statistics(node):
            yield node, value


def _normalise(x: Tensor, node: Node, moments: _Moments, *, biased: bool) -> None:
    """Write batch norm's output over its input."""
    shape = (1, -1, *(1,) * (x.dim() - 2))
    scale = ((moments.biased() if biased else moments.unbiased()) + _eps(node)).rsqrt()
    gamma, beta = node.get("weight"), node.get("bias")
    scale = scale if gamma is None or gamma.data is None else scale * gamma.data.double()
    shift = -moments.mean * scale
    shift = shift if beta is None or beta.data is None else shift + beta.data.double()
    x.mul_(scale.to(x).view(shape)).add_(shift.to(x).view(shape))


def _eps(node: Node) -> float:
    eps = node.attrs.get("eps")
    return 1e-5 if eps is None else float(eps)
