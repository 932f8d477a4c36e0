"""Fitting a model's integers to what its layers read: weights are rounded together, and biases take out what is off on average.

Layer after layer, in the order in which they run, on calibration images and without labels. What a layer should give is what it gives in
float; what it reads is what the quantised model so far gives it, so that a bias makes up for the errors of all layers before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from irtool.engines.onnxruntime.calibrate import Told, nobody
from irtool.engines.onnxruntime.qdq import to_qdq
from irtool.engines.onnxruntime.walk import Walk, live_bytes
from irtool.engines.onnxruntime.windows import inputs_at, outputs_at
from irtool.quant.placement import DefUse, Layer
from irtool.quant.rounding import output_error, rounded_together
from irtool.quant.scales import QuantisedLayer, Recipe
from irtool.quant.weights import steps_of

POSITIONS = 32
"""Positions of a layer's output that are sampled from each image."""
WIDEST = 2400
"""Inputs of an output: wider layers are rounded to the nearest, since time grows with the cube."""
MEMORY = 1 << 30
"""Bytes that the values of all images may take, in float and quantised together."""
HELD = 4
"""One batch in so many chooses between the two roundings, and fits neither."""


def images_that_fit(model: ModelProto, memory: int = MEMORY) -> int:
    """Count the images that can be walked through a model at once."""
    return max(1, memory // max(2 * live_bytes(model), 1))


def refined(
    model: ModelProto, recipe: Recipe, feeds: Sequence[Mapping[str, np.ndarray]], told: Told = nobody, *, shared: bool = True
) -> Recipe:
    """Fit a recipe's weights and biases.

    A layer whose windows cannot be told, or that does not compute what they say, stays as it is; so do all layers of a model with control flow.

    Args:
        model: the float model that the recipe was made for.
        recipe: all scales. These stay.
        feeds: calibration images in two or more batches, each as the model's inputs by name.
        told: called with the number of layers done.
        shared: whether layers that read the same weight get integers of their own; else such layers stay as they are.
    """
    if DefUse(model).inside or not recipe.placement.layers:
        return recipe
    readers = Counter(layer.weight for layer in recipe.placement.layers)
    return _Refinement(model, recipe, feeds).run(told, {name for name, count in readers.items() if count > 1 and not shared})


@dataclass
class _Moments:
    """Sums over rows of what a layer reads and should give."""

    rows: int
    squares: np.ndarray  # (groups, inputs, inputs)
    reads: np.ndarray  # (groups, inputs)
    gives: np.ndarray  # (outputs,)

    def add(self, read: np.ndarray, given: np.ndarray) -> None:
        by_group = np.ascontiguousarray(read.transpose(1, 0, 2))
        self.squares += by_group.transpose(0, 2, 1) @ by_group
        self.reads += by_group.sum(1)
        self.gives += given.sum(0)
        self.rows += len(read)

    def joined(self, other: _Moments) -> _Moments:
        return _Moments(self.rows + other.rows, self.squares + other.squares, self.reads + other.reads, self.gives + other.gives)

    def second(self, centred: bool) -> np.ndarray:
        """Their covariance where a bias takes the mean, else their second moment."""
        means = self.reads / self.rows
        found: np.ndarray = self.squares / self.rows
        return found - means[:, :, None] * means[:, None] if centred else found


class _Refinement:
    def __init__(self, model: ModelProto, recipe: Recipe, feeds: Sequence[Mapping[str, np.ndarray]]) -> None:
        self.recipe, self.layers, places = recipe, dict(recipe.layers), recipe.placement.layers
        quantised = to_qdq(model, recipe) if recipe.activations else _copy(model)
        wiring = DefUse(quantised)
        self.nodes = {layer.name: _node_of(wiring, layer.name) for layer in places}
        # A layer's integer weight is restored by the node before it: there is the place to stop.
        self.stops = {name: wiring.producer.get(node.input[1], wiring.producer[node.output[0]]) for name, node in self.nodes.items()}
        self.quantised = Walk(quantised, feeds, {self.nodes[name].input[0]: stop for name, stop in self.stops.items()})
        seen = {layer.name: layer.node + 1 for layer in places}
        self.exact = Walk(model, feeds, seen | {layer.input: layer.node + 1 for layer in places})
        for layer in () if recipe.activations else places:
            self._put(layer, recipe.layers[layer.name])

    def run(self, told: Told, fixed: Collection[str]) -> Recipe:
        """Fit one layer after the other, but for those that read one of the `fixed` weights."""
        for done, layer in enumerate(sorted(self.recipe.placement.layers, key=lambda layer: self.stops[layer.name]), 1):
            self.exact.advance(layer.node + 1)
            self.quantised.advance(self.stops[layer.name])
            weight = self.exact.wiring.array(layer.weight)
            moments = None if layer.weight in fixed else self._moments(layer, weight)
            if moments is not None:
                self._fit(layer, weight, *moments)
            told(done)
        return replace(self.recipe, layers=self.layers)

    def _moments(self, layer: Layer, weight: np.ndarray) -> tuple[_Moments, _Moments] | None:
        """Moments of the batches that fit, and of those that choose; None for a layer that is to stay."""
        groups, node = layer.groups, self.exact.wiring.nodes[layer.node]
        width, outputs = weight.size // weight.shape[layer.axis], weight.shape[layer.axis]
        found = [_Moments(0, np.zeros((groups, width, width)), np.zeros((groups, width)), np.zeros(outputs)) for _ in range(2)]
        for number, (exact, quantised) in enumerate(zip(self.exact.live, self.quantised.live, strict=True)):
            places = partial(_places, seed=number)
            read = inputs_at(layer, node, quantised[self.nodes[layer.name].input[0]], weight.shape, places)
            given = outputs_at(layer, exact[layer.name], places)
            if read is None or (not number and not self._computes(layer, node, exact, weight, places)):
                return None
            found[number % HELD == HELD - 1 or len(self.exact.live) == 1].add(read.astype(np.float64), given.astype(np.float64))
        return found[0], found[1]

    def _computes(
        self, layer: Layer, node: NodeProto, live: Mapping[str, np.ndarray], weight: np.ndarray, places: Callable[[int, int], np.ndarray]
    ) -> bool:
        """Whether rows and weight give in float what the layer itself gives."""
        read, given = inputs_at(layer, node, live[layer.input], weight.shape, places), outputs_at(layer, live[layer.name], places)
        if read is None or len(read) != len(given):
            return False
        blocks = layer.rows(weight).reshape(layer.groups, -1, read.shape[2])
        made = np.einsum("rgi,goi->rgo", read, blocks).reshape(len(read), -1)
        made = made + self.exact.wiring.array(layer.bias) if layer.bias is not None else made
        return bool(np.abs(made - given).max() <= 1e-3 * max(float(np.abs(given).max()), 1e-6))

    def _fit(self, layer: Layer, weight: np.ndarray, fitted: _Moments, held: _Moments) -> None:
        old, both = self.layers[layer.name], fitted.joined(held)
        rows = layer.rows(weight).astype(np.float64)
        rows = rows if old.least is None else rows - old.least[:, None]
        blocks = rows.reshape(layer.groups, -1, rows.shape[1])
        scales = old.scales.astype(np.float64).reshape(layer.groups, -1)
        nearest = layer.rows(old.weight).astype(np.float64).reshape(blocks.shape)
        whole, biased = nearest, old.bias is not None
        if rows.shape[1] <= WIDEST and min(fitted.rows, held.rows) > 0:

            def error(integers: np.ndarray) -> float:
                return output_error(integers * scales[:, :, None] - blocks, held.second(biased))

            bounds, pinned = _grid(old, blocks, self.recipe.bits)
            if error(rounded_together(blocks, fitted.second(biased), scales, bounds, pinned)) < error(nearest):
                whole = rounded_together(blocks, both.second(biased), scales, bounds, pinned)
        integers = layer.unrows(whole.reshape(rows.shape).astype(old.weight.dtype), weight.shape)
        found = replace(old, weight=integers)
        if biased:
            made = layer.rows(found.restored(layer)).astype(np.float64).reshape(blocks.shape)
            found = replace(found, bias=both.gives / both.rows - (made @ (both.reads / both.rows)[:, :, None]).reshape(-1))
        self.layers[layer.name] = found
        self._put(layer, found)

    def _put(self, layer: Layer, found: QuantisedLayer) -> None:
        """Give the quantised model what was found, before it runs the layer."""
        node, wiring = self.nodes[layer.name], self.quantised.wiring
        values = {1: found.restored(layer)} | ({} if found.bias is None else {2: found.bias.astype(np.float32)})
        if self.recipe.activations:
            values[1] = found.weight
        for slot, value in values.items():
            name = node.input[slot]
            if not self.recipe.activations:  # the constant may be other layers' too
                name = node.input[slot] = f"{layer.name}, {slot}"
            elif slot == 1:
                name = wiring.nodes[wiring.producer[name]].input[0]
            wiring.constants[name] = numpy_helper.from_array(value, name)


def _copy(model: ModelProto) -> ModelProto:
    made = ModelProto()
    made.CopyFrom(model)
    return made


def _grid(old: QuantisedLayer, blocks: np.ndarray, bits: int) -> tuple[tuple[int, int], np.ndarray | None]:
    """The least and the largest integer, and which weights must stay: an engine finds a row's grid by its ends where it counts from the least."""
    if old.least is None:
        return (-steps_of(bits), steps_of(bits)), None
    ends = np.zeros(blocks.shape, bool)
    for end in (blocks.argmin(2), blocks.argmax(2)):
        np.put_along_axis(ends, end[:, :, None], True, 2)
    return (0, 2**bits - 1), ends


def _node_of(wiring: DefUse, name: str) -> NodeProto:
    """The node that makes a tensor, behind the steps in and out of integers."""
    node = wiring.nodes[wiring.producer[name]]
    while node.op_type in ("DequantizeLinear", "QuantizeLinear"):
        node = wiring.nodes[wiring.producer[node.input[0]]]
    return node


def _places(images: int, positions: int, seed: int) -> np.ndarray:
    """Positions of each image (images, some), the same for the same sizes and seed."""
    if positions <= POSITIONS:
        return np.tile(np.arange(positions), (images, 1))
    return np.random.default_rng(seed).integers(positions, size=(images, POSITIONS))
