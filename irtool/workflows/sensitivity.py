"""What each layer costs when it alone is quantised."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from irtool.engines import OnnxSession
from irtool.engines.onnxruntime.qdq import to_qdq
from irtool.quant.calibrate import Told, nobody
from irtool.quant.placement import place
from irtool.quant.scales import Scheme, make_recipe
from irtool.quant.statistics import Statistics


@dataclass(frozen=True)
class Sensitivity:
    """One layer in int8, all else in float.

    Attributes:
        layer: its name.
        op: its operator.
        sqnr_db: power of the model's output over power of the error, in decibels: the higher the better.
        accuracy: share of images that are right, in [0, 1].
        weights: entries of its weight.
    """

    layer: str
    op: str
    sqnr_db: float
    accuracy: float
    weights: int


def sensitivities(
    model: ModelProto,
    engine: str,
    stats: Mapping[str, Statistics],
    scheme: Scheme,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    threads: int | None = None,
    told: Told = nobody,
) -> list[Sensitivity]:
    """Quantise each layer alone and look at the model's first output, in onnxruntime; the most sensitive layer first.

    Args:
        model: as `prepared` returns it.
        engine: whose habits the placement has; an MNN recipe is simulated by onnxruntime too, which is near enough to rank.
        stats: of all tensors of the engine's placement.
        scheme: the options.
        images: float32, what the model takes.
        labels: int64 (N,).
        threads: of onnxruntime.
        told: called with the number of layers done.
    """
    layers = place(model, engine).layers
    everything = [layer.name for layer in layers]
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    found = []
    with tempfile.TemporaryDirectory() as folder:
        expected = _outputs(model, Path(folder), images, threads)
        for done, layer in enumerate(layers, start=1):
            alone = place(model, engine, [name for name in everything if name != layer.name], joins=False)
            got = _outputs(to_qdq(model, make_recipe(model, alone, stats, scheme)), Path(folder), images, threads)
            accuracy = float((got.reshape(len(got), -1).argmax(1) == labels).mean())
            found.append(Sensitivity(layer.name, layer.op, sqnr(got, expected), accuracy, sizes[layer.weight]))
            told(done)
    return sorted(found, key=lambda entry: entry.sqnr_db)


def sqnr(result: np.ndarray, reference: np.ndarray) -> float:
    """Signal to quantisation noise in decibels; 200 where there is no noise."""
    signal = float((reference.astype(np.float64) ** 2).sum())
    noise = float(((result.astype(np.float64) - reference) ** 2).sum())
    return min(200.0, 10 * float(np.log10(max(signal, 1e-30) / max(noise, 1e-300))))


def _outputs(model: ModelProto, folder: Path, images: np.ndarray, threads: int | None) -> np.ndarray:
    path = folder / "model.onnx"
    onnx.save(model, str(path))
    session = OnnxSession(path, threads)
    fixed = (session.inputs[0].shape or (None,))[0]
    step = fixed or 64
    whole = len(images) // step * step if fixed else len(images)
    return np.concatenate([session.run(images[start : start + step])[0] for start in range(0, whole, step)])
