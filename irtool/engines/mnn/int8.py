"""Writing an int8 model for MNN with scales of our own, and with MNN's own quantiser for comparison."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from irtool.atomic_files import replacing, scratch_folder
from irtool.engines import MnnExport, export_mnn
from irtool.engines.mnn.int8_check import require_promised
from irtool.engines.mnn.int8_form import mnn_form
from irtool.engines.mnn.int8_params import MnnLayer, compression_params
from irtool.engines.mnn.layers import MnnOperator, mnn_operators
from irtool.engines.mnn.short_names import long_name, short_names, shortened
from irtool.errors import OptionError, shown_as
from irtool.quant.placement import DefUse, Layer, is_result, layers_of
from irtool.quant.scales import Recipe
from irtool.quant.weights import steps_of

_COPIES = frozenset({"ConvertTensor", "Reshape"})
"""Operators that the converter puts behind a product that became a convolution: the result's name comes after them."""


@dataclass(frozen=True)
class MnnInt8:
    """The int8 .mnn file that was written.

    Attributes:
        export: the file.
        layers: the names of the layers that are int8 in it.
        missed: layers of the recipe that MNN has not as a convolution of its own, which stay in float.
    """

    export: MnnExport
    layers: tuple[str, ...]
    missed: tuple[str, ...]


def matched(
    layers: Sequence[Layer], operators: Sequence[MnnOperator], convolutions: Mapping[str, str] | None = None
) -> dict[str, tuple[str, ...]]:
    """MNN's output tensor for each layer that MNN has as a convolution, or as one for each of its groups, by layer name.

    Args:
        layers: of the model that was converted.
        operators: what the converter made of it.
        convolutions: the outputs of convolutions that stand for layers, by layer name.
    """
    known = convolutions or {}
    behind = {op.inputs[0]: op.outputs[0] for op in operators if op.kind in _COPIES and op.inputs}
    renamed = {}
    for op in operators:
        if op.is_convolution:
            name: str | None = op.outputs[0]
            while name is not None and name not in renamed:
                renamed[name] = op.outputs[0]
                name = behind.get(name)
    found: dict[str, tuple[str, ...]] = {}
    for layer in layers:
        names = (known.get(layer.name), layer.output, layer.name)
        whole = next((renamed[name] for name in names if name in renamed), None)
        parts = [f"{layer.name}___output___{group}" for group in range(layer.groups)]  # how the converter splits groups
        if whole is not None:
            found[layer.name] = (whole,)
        elif all(part in renamed for part in parts):
            found[layer.name] = tuple(parts)
    return found


def export_mnn_int8(model: ModelProto, recipe: Recipe, path: str | os.PathLike[str]) -> MnnInt8:
    """Convert a float model to MNN with the scales and integers of a recipe. MNN rounds weights to the nearest: it is given those that the
    recipe rounded. Where the last layers alone compute in float, their weights have as many bits too.

    The file appears at `path` only if MNN computes with it about what onnxruntime does with the same scales. How good the
    scales are is not judged here: score the file.

    Args:
        model: the float model that the recipe was made for.
        recipe: its activations must be int8 and symmetric. MNN has a place for zero points, but its operators between layers go
            wrong with them.
        path: the .mnn file.

    Raises:
        ExportError: the converter fails, or MNN's output is grossly wrong: see `irtool.engines.mnn.int8_check`.
        FileError: the file cannot be written.
        OptionError: activations of another kind.
    """
    if any(params.zero_point or params.grid.dtype != "int8" for params in recipe.activations.values()):
        raise OptionError("activations with a zero point", where="MNN", remedy='Use Scheme(activations="int8", symmetric=True).')
    names, (model, recipe) = short_names(model), shortened(model, recipe)
    with scratch_folder() as folder, shown_as(folder / "model.onnx", path), replacing(path) as temporary:
        source, scales = folder / "model.onnx", folder / "scales.bin"
        weights = {layer.node: recipe.layers[layer.name].restored(layer) for layer in recipe.placement.layers}
        biases = {layer.node: bias for layer in recipe.placement.layers if (bias := recipe.layers[layer.name].bias) is not None}
        form, convolutions = mnn_form(model, weights, biases, recipe.placement.floating)
        onnx.save(form, str(source))
        found = matched(recipe.placement.layers, mnn_operators(source), convolutions)
        layers = [layer for layer in recipe.placement.layers if layer.name in found and layer.output in recipe.activations]
        entries = [entry for layer in layers for entry in _entries(layer, found[layer.name], recipe)]
        scales.write_bytes(compression_params(entries))
        light = len(layers) == len(recipe.placement.layers) and _only_results_float(model, recipe)
        export = export_mnn(source, temporary, compression_params=scales, weight_bits=recipe.bits if light else None)
        if export.max_error is not None:
            require_promised(model, recipe, temporary)
    everything = [long_name(layer.name, names) for layer in recipe.placement.layers]
    done = tuple(long_name(layer.name, names) for layer in layers)
    return MnnInt8(replace(export, path=Path(path)), done, tuple(name for name in everything if name not in done))


def _only_results_float(model: ModelProto, recipe: Recipe) -> bool:
    """Whether the layers in float are last ones: these may have 8-bit weights. Between integers MNN takes such a layer for an integer one."""
    wiring, quantised = DefUse(model), {layer.name for layer in recipe.placement.layers}
    return all(is_result(wiring, layer.output) for layer in layers_of(model) if layer.name not in quantised)


def _entries(layer: Layer, outputs: Sequence[str], recipe: Recipe) -> list[MnnLayer]:
    """The layer's entry, or one for each convolution that it was split into."""
    given, result = recipe.activations[layer.input], recipe.activations[layer.output]
    parts = np.split(recipe.layers[layer.name].scales, len(outputs))
    return [MnnLayer(output, given, result, scales, steps_of(recipe.bits)) for output, scales in zip(outputs, parts, strict=True)]
