"""Sensitivity of each layer: the error of the outputs when it alone is quantised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto

from irtool.atomic_files import scratch_folder
from irtool.engines import OnnxSession
from irtool.engines.onnxruntime.calibrate import Told, nobody
from irtool.engines.onnxruntime.qdq import to_qdq
from irtool.quant.placement import Int8Policy, place
from irtool.quant.scales import Recipe, Scheme, make_recipe
from irtool.quant.statistics import Statistics
from irtool.workflows.loading.feeds import Feed, agreement, in_parts, runner


@dataclass(frozen=True)
class Sensitivity:
    """One layer in int8, all else in float.

    Attributes:
        layer: its name.
        op: its operator.
        sqnr_db: power of the model's output over power of the error, in decibels: the higher the better.
        accuracy: share of images that get the expected answer, in [0, 1]; of a model that is no classifier the agreement of its outputs.
        weights: entries of its weight.
    """

    layer: str
    op: str
    sqnr_db: float
    accuracy: float
    weights: int


def sensitivities(
    model: ModelProto,
    policy: Int8Policy,
    stats: Mapping[str, Statistics],
    scheme: Scheme,
    images: np.ndarray,
    labels: np.ndarray | None,
    *,
    feed: Feed | None = None,
    batch: int | None = None,
    threads: int | None = None,
    values: Sequence[str] = (),
    told: Told = nobody,
) -> list[Sensitivity]:
    """Quantise each layer alone and look at the model's outputs, in onnxruntime; the most sensitive layer first.

    Args:
        model: as `prepared` returns it.
        policy: of the engine that the model is for, which onnxruntime simulates; that is near enough to rank.
        stats: of all tensors of the engine's placement.
        scheme: the options.
        images: float32 (N, C, H, W).
        labels: the expected answers, int64 (N,); None of a model that is no classifier.
        feed: how the model takes images; by default as they are.
        batch: the batch that is written into the model; None if it is free.
        threads: of onnxruntime.
        values: what to look at in place of the outputs, by name.
        told: called with the number of layers done.
    """
    whole = make_recipe(model, place(model, policy), stats, scheme)
    layers = whole.placement.layers
    everything = [layer.name for layer in layers]
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    found = []
    with scratch_folder() as folder:

        def outputs(some: ModelProto) -> list[np.ndarray]:
            path = folder / "model.onnx"
            onnx.save(some, str(path))
            return in_parts(runner(OnnxSession(path, threads, values=values), feed or Feed(), batch), images)

        expected = outputs(model)
        for done, layer in enumerate(layers, start=1):
            alone = place(model, policy, [name for name in everything if name != layer.name], joins=False)
            ranges = {name: whole.activations[name] for name in alone.tensors}
            got = outputs(to_qdq(model, Recipe(alone, ranges, {layer.name: whole.layers[layer.name]}, whole.bits)))
            right = agreement(got, expected) if labels is None else float((got[0].reshape(len(labels), -1).argmax(1) == labels).mean())
            pairs = [(a, b) for a, b in zip(got, expected, strict=True) if a.shape == b.shape]
            found.append(Sensitivity(layer.name, layer.op, min(sqnr(a, b) for a, b in pairs), right, sizes[layer.weight]))
            told(done)
    return sorted(found, key=lambda entry: entry.sqnr_db)


def sqnr(result: np.ndarray, reference: np.ndarray) -> float:
    """Signal to quantisation noise in decibels; 200 where there is no noise."""
    signal = float((reference.astype(np.float64) ** 2).sum())
    noise = float(((result.astype(np.float64) - reference) ** 2).sum())
    return min(200.0, 10 * float(np.log10(max(signal, 1e-30) / max(noise, 1e-300))))
