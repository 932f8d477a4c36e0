"""Writing an int8 model as ONNX with QuantizeLinear and DequantizeLinear.

Each integer tensor gets both steps; engines drop those between two integer operators. Weights are stored as int8 with one
scale a channel. Biases are floats: integer convolutions need them as int32 whose scale is the product of the input's and the weight's,
and engines make that of them when they load the file, which saves a scale for each.
"""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from irtool.engines.onnxruntime.prepare import OLDEST, drop_unread
from irtool.errors import ExportError
from irtool.hosts.onnx.files.file import opset_of
from irtool.quant.affine import Affine
from irtool.quant.placement import DefUse, Layer
from irtool.quant.scales import QuantisedLayer, Recipe


def to_qdq(model: ModelProto, recipe: Recipe) -> ModelProto:
    """The int8 model.

    Args:
        model: the float model that the recipe was made for; unchanged.
        recipe: all scales.

    Raises:
        ExportError: the operator set is older than 13.
    """
    opset = opset_of(model) or 0
    if opset < OLDEST:
        raise ExportError(
            f"operator set {opset}", where="quantise", remedy=f"Convert the model to {OLDEST} or newer (17 suits all engines)."
        )
    result = ModelProto()
    result.CopyFrom(model)
    writer = _Writer(result, recipe)
    writer.activations()
    for layer in recipe.placement.layers:
        writer.layer(layer, recipe.layers[layer.name])
    writer.finish()
    drop_unread(result)
    return result


class _Writer:
    """Names that it makes are short: with many small layers, names would be a tenth of the file."""

    def __init__(self, model: ModelProto, recipe: Recipe) -> None:
        self.graph, self.recipe, self.wiring = model.graph, recipe, DefUse(model)
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.before: dict[int, list[NodeProto]] = {}
        self.after: dict[str, list[NodeProto]] = {}
        self.taken = {name for node in self.nodes for name in (*node.input, *node.output, node.name)} | self.wiring.inside
        self.taken |= {*self.wiring.constants, *self.wiring.outputs, *self.wiring.inputs}
        self.zeros: dict[tuple[str, int], str] = {}
        self.counts: Counter[str] = Counter()

    def activations(self) -> None:
        """Put both steps behind each integer tensor and let its readers read the result."""
        for name, params in self.recipe.activations.items():
            scale, zero = self._constant("s", np.float32(params.scale)), self._zero(params)
            result = name in self.wiring.outputs and name in self.wiring.producer
            raw = self._free("f") if result else name
            stored, restored = self._free("q"), name if result else self._free("d")
            if result:
                self._rename_output(name, raw)
            self._redirect(name, restored)
            self.after[raw] = [
                helper.make_node("QuantizeLinear", [raw, scale, zero], [stored]),
                helper.make_node("DequantizeLinear", [stored, scale, zero], [restored]),
            ]

    def layer(self, layer: Layer, integers: QuantisedLayer) -> None:
        """Give a layer its integer weight and bias. Their zero points are 0, which is what a missing one means."""
        node = self.nodes[layer.node]
        node.input[1] = self._restored(layer, "w", integers.weight, integers.scales, layer.axis)
        if integers.bias is None:
            return
        while len(node.input) < 3:
            node.input.append("")
        node.input[2] = self._constant("b", integers.bias.astype(np.float32))

    def _restored(self, layer: Layer, letter: str, integers: np.ndarray, scales: np.ndarray, axis: int) -> str:
        names = [self._constant(letter, integers), self._constant(f"{letter}s", scales)]
        restored = self._free(f"{letter}d")
        self.before.setdefault(layer.node, []).append(helper.make_node("DequantizeLinear", names, [restored], axis=axis))
        return restored

    def finish(self) -> None:
        """Put the nodes in order."""
        ordered: list[NodeProto] = []
        for name in self.wiring.inputs:
            ordered += self.after.pop(name, [])
        for index, node in enumerate(self.nodes):
            ordered += [*self.before.get(index, []), node]
            for name in node.output:
                ordered += self.after.pop(name, [])
        for node in ordered:
            _drop_defaults(node)
        del self.graph.node[:], self.graph.value_info[:]
        self.graph.node.extend(ordered)

    def _constant(self, letter: str, values: np.ndarray | np.generic) -> str:
        name = self._free(letter)
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def _zero(self, params: Affine) -> str:
        key = (params.grid.dtype, params.zero_point)
        if key not in self.zeros:
            self.zeros[key] = self._constant("z", np.asarray(params.zero_point, params.grid.dtype))
        return self.zeros[key]

    def _free(self, letter: str) -> str:
        name = next(name for number in itertools.count(self.counts[letter]) if (name := f"{letter}{number}") not in self.taken)
        self.counts[letter] = int(name[len(letter) :]) + 1
        self.taken.add(name)
        return name

    def _redirect(self, name: str, to: str) -> None:
        for index in self.wiring.readers.get(name, []):
            inputs = self.nodes[index].input
            for slot, held in enumerate(inputs):
                if held == name:
                    inputs[slot] = to

    def _rename_output(self, name: str, to: str) -> None:
        outputs = self.nodes[self.wiring.producer[name]].output
        outputs[list(outputs).index(name)] = to


_DEFAULTS = {"dilations": {1}, "strides": {1}, "pads": {0}, "group": {1}}
"""Values of a window's attributes that are missing."""


def _drop_defaults(node: NodeProto) -> None:
    """Drop what a convolution says that is so anyway."""
    if node.op_type == "Conv":
        said = [a for a in node.attribute if {*np.atleast_1d(helper.get_attribute_value(a))} != _DEFAULTS.get(a.name)]
        kept = [a.SerializeToString() for a in said]
        del node.attribute[:]
        for content in kept:
            node.attribute.add().ParseFromString(content)


def integer_types(model: ModelProto) -> set[int]:
    """The element types of a model's initializers that are integers of 8 bits: empty for a float model."""
    return {tensor.data_type for tensor in model.graph.initializer} & {TensorProto.INT8, TensorProto.UINT8}
