"""Storing an ONNX model's weights in fewer bytes, computed in float: for size.

What restores a weight is made of operators that engines compute once, when they load the file. DequantizeLinear is none of these in
onnxruntime: it keeps that one before a convolution in float, for integers that may come, and computes it in every run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from irtool.engines.onnxruntime.prepare import drop_unread, replace_nodes
from irtool.quant.placement import DefUse, Layer, layers_of
from irtool.quant.scales import Recipe


def weights_to_half(model: ModelProto) -> ModelProto:
    """A copy whose layers' weights are half floats, with a Cast behind each.

    A weight that half floats cannot hold (above 65504) stays as it is.

    Args:
        model: a float model, constants as initializers.
    """

    def stored(_layer: Layer, weight: np.ndarray) -> Stored | None:
        return Stored(weight.astype(np.float16)) if np.abs(weight).max() <= np.finfo(np.float16).max else None

    return _with_stored(model, stored)


def weights_to_integers(model: ModelProto, recipe: Recipe) -> ModelProto:
    """A copy whose layers' weights are int8 with one scale a channel, and behind each a Cast and a product with the scales.

    Args:
        model: a float model, constants as initializers.
        recipe: made for it by `weights_recipe`, and perhaps fitted by `refined`, with the same integers for layers that share a weight.
    """

    def stored(layer: Layer, weight: np.ndarray) -> Stored:
        found = recipe.layers[layer.name]
        scales = found.scales.reshape([-1 if axis == layer.axis else 1 for axis in range(weight.ndim)])
        return Stored(found.weight, scales, None if found.bias is None else found.bias.astype(np.float32))

    return _with_stored(model, stored)


def weights_restored(model: ModelProto, recipe: Recipe) -> ModelProto:
    """A copy whose layers' weights are the floats that a recipe's integers stand for, for engines that make integers of them themselves.

    Args:
        model: a float model, constants as initializers.
        recipe: see `weights_to_integers`.
    """

    def stored(layer: Layer, _weight: np.ndarray) -> Stored:
        found = recipe.layers[layer.name]
        return Stored(found.restored(layer), None, None if found.bias is None else found.bias.astype(np.float32))

    return _with_stored(model, stored)


@dataclass(frozen=True)
class Stored:
    """A layer's weight as it is stored.

    Attributes:
        values: of the weight's shape; float32 is read as it is.
        scales: what they are multiplied by, of a shape that fits; None for 1.
        bias: the layer's, in place of the one that it has; None to keep that.
    """

    values: np.ndarray
    scales: np.ndarray | None = None
    bias: np.ndarray | None = None


def _with_stored(model: ModelProto, stored: Callable[[Layer, np.ndarray], Stored | None]) -> ModelProto:
    """A copy whose layers read restored weights. One that layers share along the same axis is stored once; `stored` gives None for what stays."""
    result = ModelProto()
    result.CopyFrom(model)
    wiring, names, restored = DefUse(result), _names(result), dict[tuple[str, int], str]()
    before: list[NodeProto] = []
    for layer in layers_of(result):
        key, node = (layer.weight, layer.axis), wiring.nodes[layer.node]
        held = stored(layer, wiring.array(layer.weight))
        if key not in restored:
            restored[key] = layer.weight if held is None else _restore(result, held, names, before)
        node.input[1] = restored[key]
        if held is not None and held.bias is not None and (held.bias != wiring.array(node.input[2])).any():
            node.input[2] = _kept(result, held.bias, names)
    replace_nodes(result, [*before, *wiring.nodes])
    drop_unread(result)
    return result


def _kept(model: ModelProto, values: np.ndarray, names: Iterator[str]) -> str:
    """The name of a new constant."""
    name = next(names)
    model.graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def _restore(model: ModelProto, held: Stored, names: Iterator[str], nodes: list[NodeProto]) -> str:
    """Store a weight, and add what makes floats of it; the name of these."""
    if held.values.dtype == np.float32:
        return _kept(model, held.values, names)
    nodes.append(helper.make_node("Cast", [_kept(model, held.values, names)], [next(names)], to=TensorProto.FLOAT))
    if held.scales is not None:
        nodes.append(helper.make_node("Mul", [nodes[-1].output[0], _kept(model, held.scales, names)], [next(names)]))
    return str(nodes[-1].output[0])


def _names(model: ModelProto) -> Iterator[str]:
    """Names that are free. They are short: with many small layers, names would be a tenth of the file."""
    wiring = DefUse(model)
    taken: set[str] = {*wiring.constants, *wiring.outputs, *wiring.inputs} | wiring.inside
    taken |= {name for node in wiring.nodes for name in (*node.input, *node.output, node.name)}
    return (name for number in itertools.count() if (name := f"w{number}") not in taken)
