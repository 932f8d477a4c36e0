"""Quantisation of a model: the options, and the numbers that they led to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from irtool.errors import DataError
from irtool.quant.affine import Affine, grid
from irtool.quant.observers import observe
from irtool.quant.placement import DefUse, Layer, Placement, layers_of
from irtool.quant.statistics import Statistics
from irtool.quant.weights import channel_scales, counted_from_least, integers_of, steps_of


@dataclass(frozen=True)
class Scheme:
    """Options of quantisation.

    Attributes:
        activations: `uint8` or `int8`, one scale a tensor.
        symmetric: whether the zero point of activations is the middle of the type.
        method: how a range is chosen: see `irtool.quant.observers.METHODS`.
        weights: how a weight's scales are chosen: `max` or `admm`; always symmetric, one an output channel.
        weight_bits: 8, or fewer. On x86 CPUs without VNNI instructions onnxruntime adds pairs of products of uint8 activations
            and weights in 16 bits, and what does not fit is cut off in silence; with 7 bits all fits (2 * 255 * 63 < 2**15).
        correct_bias: take the mean of what rounding the weights adds out of the bias.
    """

    activations: str = "uint8"
    symmetric: bool = False
    method: str = "mse"
    weights: str = "max"
    weight_bits: int = 8
    correct_bias: bool = True


@dataclass(frozen=True)
class QuantisedLayer:
    """One layer's integers.

    Attributes:
        weight: int8, of the float weight's shape; uint8 where integers count up from `least`.
        scales: float32 (output channels,).
        bias: float64 (output channels,), corrected if asked for; None if the layer has none and needs none.
        least: what the integer 0 stands for, float64 (output channels,); None for 0.
    """

    weight: np.ndarray
    scales: np.ndarray
    bias: np.ndarray | None
    least: np.ndarray | None = None

    def restored(self, layer: Layer) -> np.ndarray:
        """The float32 weight that the integers stand for."""
        rows = layer.rows(self.weight).astype(np.float64) * self.scales.astype(np.float64)[:, None]
        rows += 0.0 if self.least is None else self.least[:, None]
        return layer.unrows(rows, self.weight.shape).astype(np.float32)


@dataclass(frozen=True)
class Recipe:
    """Everything that an int8 file of one model needs.

    Attributes:
        placement: where integers are.
        activations: by tensor, for each tensor of the placement.
        layers: by layer name.
        bits: of the weights.
    """

    placement: Placement
    activations: Mapping[str, Affine]
    layers: Mapping[str, QuantisedLayer]
    bits: int = 8


def make_recipe(model: ModelProto, placement: Placement, stats: Mapping[str, Statistics], scheme: Scheme) -> Recipe:
    """Choose all scales.

    Args:
        model: the float model.
        placement: made for it.
        stats: of at least `placement.observed`.
        scheme: the options.

    Raises:
        OptionError: an option that does not exist.
        DataError: a tensor was never seen.
    """
    kind = grid(scheme.activations, scheme.symmetric)
    unseen = [name for name in placement.observed if name not in stats]
    if unseen:
        raise DataError(
            f"no statistics of {unseen[0]!r} ({len(unseen)} of {len(placement.observed)} tensors have none)",
            where="make_recipe",
            remedy="Calibrate the placement's own tensors: calibrate(model, placement.tensors, batches).",
        )
    ranges = {name: observe(stats[name], scheme.method, kind) for name in placement.observed}
    activations = {name: ranges[source] for name, source in placement.tensors.items()}
    wiring = DefUse(model)
    layers = {
        layer.name: quantise_layer(wiring, layer, activations[layer.input], scheme, stats.get(layer.input)) for layer in placement.layers
    }
    return Recipe(placement, activations, layers, scheme.weight_bits)


def weights_recipe(model: ModelProto, method: str = "max", bits: int = 8, from_least: bool = False) -> Recipe:
    """The recipe of a file whose layers' weights alone are integers, each the nearest. Biases stay as they are.

    Args:
        model: a float model, constants as initializers.
        method, bits: see `channel_scales`.
        from_least: whether integers count up from a channel's least weight (`counted_from_least`); else they are symmetric, and `method`
            says how.

    Raises:
        OptionError: another method or number of bits.
    """
    wiring, layers, found = DefUse(model), layers_of(model), dict[str, QuantisedLayer]()
    steps = steps_of(bits)
    for layer in layers:
        weight = wiring.array(layer.weight)
        rows = layer.rows(weight).astype(np.float64)
        bias = None if layer.bias is None else wiring.array(layer.bias).astype(np.float64)
        if from_least:
            least, wide = counted_from_least(rows, bits)
            integers, scales = np.rint((rows - least[:, None]) / wide[:, None]).astype(np.uint8), wide.astype(np.float32)
            found[layer.name] = QuantisedLayer(layer.unrows(integers, weight.shape), scales, bias, least)
            continue
        scales = channel_scales(rows, method, bits)
        whole = layer.unrows(integers_of(rows, scales.astype(np.float64), steps), weight.shape)
        found[layer.name] = QuantisedLayer(whole, scales, bias)
    return Recipe(Placement(layers, {}), {}, found, bits)


def quantise_layer(wiring: DefUse, layer: Layer, given: Affine, scheme: Scheme, seen: Statistics | None = None) -> QuantisedLayer:
    """A layer's weight and bias in integers.

    Args:
        wiring: the float model's.
        layer: one of its layers.
        given: how its input is quantised. Scales are widened where the bias would not fit 32 bits otherwise.
        scheme: the options.
        seen: its input's statistics, for bias correction.
    """
    weight = wiring.array(layer.weight)
    rows, steps = layer.rows(weight).astype(np.float64), steps_of(scheme.weight_bits)
    bias = wiring.array(layer.bias).astype(np.float64) if layer.bias is not None else None
    scales = channel_scales(rows, scheme.weights, scheme.weight_bits)
    if bias is not None:
        scales = np.maximum(scales, np.float32(np.abs(bias) / (2.0**30 * given.scale)))
    integers = integers_of(rows, scales.astype(np.float64), steps)
    if scheme.correct_bias and layer.op != "MatMul" and seen is not None and seen.means is not None:  # a MatMul has no bias
        shift = _shift(layer, integers * scales.astype(np.float64)[:, None] - rows, weight, seen.means)
        bias = (np.zeros(len(rows)) if bias is None else bias) - shift
    return QuantisedLayer(layer.unrows(integers, weight.shape), scales, bias)


def _shift(layer: Layer, error: np.ndarray, weight: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Return the mean error of each output that the weights' rounding causes: sum over inputs of error times the input's mean.

    After Nagel et al. (2019, arXiv:1906.04721), section 4.2, with means measured on images. Zero padding is left out of the
    account, so the correction is a little too large at the border.
    """
    if layer.op != "Conv":
        return np.asarray(error @ means) if error.shape[1] == len(means) else np.zeros(len(error))
    per_input = error.reshape(len(error), weight.shape[1], -1).sum(axis=2)
    outputs_each = len(error) // layer.groups
    inputs = means.reshape(layer.groups, -1)
    return np.einsum("goi,gi->go", per_input.reshape(layer.groups, outputs_each, -1), inputs).reshape(-1)
