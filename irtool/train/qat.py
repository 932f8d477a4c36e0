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
from irtool.hosts.torch.running.intercepted import InterceptedNet
from irtool.ir.graph import Graph
from irtool.passes import FoldBatchNorm
from irtool.progress import Progress, silent
from irtool.quant import Affine, Placement, Statistics, grid, layers_of, observe, place
from irtool.quant.fake import rounded_activation, rounded_weight
from irtool.quant.weights import steps_of
from irtool.train.data.dataset import Data
from irtool.train.data.loaders import as_loaders
from irtool.train.fit import Trainable, fit
from irtool.train.history import History
from irtool.train.settings import Settings

IMAGES = 128
"""That ranges are observed on, before the first epoch and after each."""
BATCH = 32
MEASURED = 0.5
"""The share of the steps in which batch norms that could not be folded measure their statistics; then they keep them, as the file does."""


class RoundedNet(InterceptedNet):
    """A traced net that rounds where its int8 file does: the same placement, the same rules for scales.

    Args:
        graph: batch norms folded; its parameters are trained in place.
        engine: whose file it is to be.
        bits: of weights; the engine's own number if None.
        weights_only: whether activations stay in float.

    Attributes:
        placement: the operators and tensors that are rounded, by the names of the graph's values.
        ranges: how each observed tensor is rounded, by name; empty until `observe`.

    Raises:
        OptionError: a number of bits that no file has, or a graph without gradients.
    """

    def __init__(self, graph: Graph, engine: Engine, bits: int | None = None, weights_only: bool = False) -> None:
        scheme = engine.int8.scheme
        bits = engine.int8.bits(bits, weights_only)
        steps_of(bits)
        model = skeleton(graph, engine.int8.lowers)
        placement = Placement(layers_of(model), {}) if weights_only else place(model, engine.int8.policy)
        own = set(graph.params)
        axes = {layer.weight: layer.axis for layer in placement.layers if layer.weight in own}
        super().__init__(graph, self._activation, self._weight, axes)
        self.bits, self.axes, self.placement = bits, axes, placement
        self._from_least = weights_only and engine.int8.weights_from_least
        self._grid, self._method = grid(scheme.activations, scheme.symmetric), scheme.method
        self.ranges: dict[str, Affine] = {}
        self._seen: dict[str, Statistics] | None = None

    @torch.no_grad()
    def observe(self, images: Tensor) -> None:
        """Choose the ranges anew from images, by the engine's rule, with weights rounded."""
        was, self._seen = self.training, {source: Statistics() for source in self.placement.observed}
        self.eval()
        try:
            for batch in images.split(BATCH):
                self(batch)
            self.ranges = {source: observe(stats, self._method, self._grid) for source, stats in self._seen.items()}
        finally:
            self._seen = None
            self.train(was)

    def _weight(self, name: str, value: Tensor) -> Tensor:
        return rounded_weight(value, self.axes[name], self.bits, self._from_least)

    def _activation(self, name: str, value: Tensor) -> Tensor:
        """Round a value, or look at it."""
        if self._seen is not None:
            if name in self._seen:
                self._seen[name].update(value.detach().cpu().numpy())
            return value
        source = self.placement.tensors.get(name)
        return value if source not in self.ranges else rounded_activation(value, self.ranges[source])


def folded(graph: object) -> object:
    """Return what is trained: the graph with batch norms folded, as the int8 file has it."""
    return FoldBatchNorm()(graph).graph if isinstance(graph, Graph) else graph


def qat(
    graph: object,
    data: Trainable,
    settings: Settings,
    *,
    engine: str = "onnxruntime",
    weight_bits: int | None = None,
    weights_only: bool = False,
    facts: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> History:
    """Train a graph in place while it rounds as its int8 file will. The accuracies that are told are with rounding.

    Batch norms that could not be folded measure their statistics in the first half of the steps, as in any training, and keep them in the second.
    Ranges are observed before the first epoch, where the statistics settle, and after each epoch. `irtool quantize` observes them by the same rule on the trained graph, so
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
    if not isinstance(graph, Graph):
        raise OptionError("a bare module has no int8 file yet", where="qat", remedy="Trace it first: irtool.trace(model, example).")
    net = RoundedNet(graph, engine_of(engine), weight_bits, weights_only)
    if not net.axes:
        raise OptionError("no layer of this model is in integers", where="qat", remedy="Finetune it: there is nothing to round.")
    found = as_loaders(data)
    images = found.sample(min(IMAGES, len(found.train)) if isinstance(found, Data) else IMAGES)

    def renew(_module: nn.Module, _record: object) -> None:
        net.observe(images)

    steps = max(1, len(found.train) // settings.batch_size) if isinstance(found, Data) else found.steps
    settle = round(MEASURED * settings.epochs * steps)

    def settled(_module: nn.Module, step: int, _loss: float) -> None:
        if net.measures and step >= settle:
            net.measures = False
            net.train(net.training)
            net.observe(images)

    net.measures = settle > 0
    net.observe(images)
    own = {"stage": "qat", "engine": engine, "weight_bits": net.bits, "weights_only": weights_only}
    return fit(net, found, settings, on_epoch=renew, on_step=settled, facts={**own, **(facts or {})}, progress=progress)
