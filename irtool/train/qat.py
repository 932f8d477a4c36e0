"""Training with the rounding of an int8 file in the forward pass (quantisation-aware training)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from irtool.engines.engine import Engine
from irtool.engines.table import engine as engine_of
from irtool.errors import OptionError
from irtool.hosts.onnx.skeleton import skeleton
from irtool.hosts.torch.graph import FxGraph
from irtool.hosts.torch.running.replacing import ReplacingRun
from irtool.ir import Graph
from irtool.passes import FoldBatchNorm
from irtool.progress import Progress, silent
from irtool.quant import Affine, Placement, Statistics, grid, layers_of, observe, place
from irtool.quant.fake import rounded_activation, rounded_weight
from irtool.quant.weights import steps_of
from irtool.train.data.dataset import Data
from irtool.train.fit import fit
from irtool.train.history import History
from irtool.train.settings import Settings

IMAGES = 128
"""That ranges are observed on, before the first epoch and after each."""
BATCH = 32


class RoundedNet(nn.Module):
    """A traced net that rounds where its int8 file does: the same placement, the same rules for scales. Batch norms keep their statistics.

    Args:
        graph: batch norms folded; its parameters are trained in place.
        engine: whose file it is to be.
        bits: of weights; the engine's own number if None.
        weights_only: whether activations stay in float.

    Attributes:
        placement: the operators and tensors that are rounded, by the names of the graph's values.
        ranges: how each observed tensor is rounded, by the name of the graph's value; empty until `observe`.
    """

    def __init__(self, graph: FxGraph, engine: Engine, bits: int | None = None, weights_only: bool = False) -> None:
        super().__init__()
        self.inner, scheme = graph.module, engine.int8.scheme
        self.bits = bits or (8 if weights_only else scheme.weight_bits)
        steps_of(self.bits)
        self._from_least = weights_only and engine.int8.weights_from_least
        self._grid, self._method = grid(scheme.activations, scheme.symmetric), scheme.method
        model = skeleton(graph, engine.int8.lowers)
        placement = Placement(layers_of(model), {}) if weights_only else place(model, engine.int8.policy)
        self.placement, own = placement, set(graph.params)
        self.axes = {layer.weight: layer.axis for layer in placement.layers if layer.weight in own}
        hosts = {value.name: node.host.name for node in graph.nodes if node.host is not None for value in node.outputs}
        self.rounded = {hosts[name]: source for name, source in placement.tensors.items()}
        self.ranges: dict[str, Affine] = {}
        self._seen: dict[str, Statistics] | None = None
        self._sources = {hosts[source]: source for source in placement.observed}

    def forward(self, *inputs: Tensor) -> Any:
        """Run the net with its rounding."""
        return ReplacingRun(self.inner, self.activation, self.axes, self.weight).run(*inputs)

    def train(self, mode: bool = True) -> RoundedNet:
        """Put the net into training mode, but for its batch norms: the file has their statistics written into it."""
        super().train(mode)
        for part in self.inner.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.eval()
        return self

    @torch.no_grad()
    def observe(self, images: Tensor) -> None:
        """Choose the ranges anew from images, by the engine's rule, with weights rounded."""
        was, self._seen = self.training, {source: Statistics() for source in self._sources.values()}
        self.eval()
        try:
            for batch in images.split(BATCH):
                self(batch)
            self.ranges = {source: observe(stats, self._method, self._grid) for source, stats in self._seen.items()}
        finally:
            self._seen = None
            self.train(was)

    def weight(self, name: str, value: Tensor) -> Tensor:
        """Round a parameter if it is a layer's weight."""
        axis = self.axes.get(name)
        return value if axis is None else rounded_weight(value, axis, self.bits, self._from_least)

    def activation(self, node: str, value: Any) -> Any:
        """Round what a node of the program gives, or look at it."""
        if not isinstance(value, Tensor):
            return value
        if self._seen is not None:
            if node in self._sources:
                self._seen[self._sources[node]].update(value.detach().cpu().numpy())
            return value
        source = self.rounded.get(node)
        return value if source not in self.ranges else rounded_activation(value, self.ranges[source])


def folded(graph: object) -> object:
    """Return what is trained: the graph with batch norms folded, as the int8 file has it."""
    return FoldBatchNorm()(graph).graph if isinstance(graph, Graph) else graph


def qat(
    graph: object,
    data: Data,
    settings: Settings,
    *,
    engine: str = "onnxruntime",
    weight_bits: int | None = None,
    weights_only: bool = False,
    facts: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> History:
    """Train a graph in place while it rounds as its int8 file will. The accuracies that are told are with rounding.

    Ranges are observed before the first epoch and after each. `irtool quantize` observes them by the same rule on the trained graph, so
    nothing but weights has to be kept. Give it --no-refine where weights have few bits: they were trained for the nearest integers.

    Args:
        graph: batch norms folded (`folded`).
        data, settings, progress: see `irtool.train.fit`.
        engine: whose file it is to be.
        weight_bits: 2 to 8; by default the engine's own.
        weights_only: round weights alone.
        facts: see `irtool.train.fit`.

    Raises:
        OptionError: no graph, an engine that does not exist, or a number of bits that no file has.
        DataError, TrainError, FileError: see `irtool.train.fit`.
    """
    if not isinstance(graph, FxGraph):
        raise OptionError("a bare module has no int8 file yet", where="qat", remedy="Trace it first: irtool.trace(model, example).")
    net = RoundedNet(graph, engine_of(engine), weight_bits, weights_only)
    if not net.axes:
        raise OptionError("no layer of this model is in integers", where="qat", remedy="Finetune it: there is nothing to round.")
    images = data.sample(min(IMAGES, len(data.train)))

    def renew(_module: nn.Module, _record: object) -> None:
        net.observe(images)

    net.observe(images)
    own = {"stage": "qat", "engine": engine, "weight_bits": net.bits, "weights_only": weights_only}
    return fit(net, data, settings, on_epoch=renew, facts={**own, **(facts or {})}, progress=progress)
