"""Short names for what lies inside a model: MNN writes each twice into its file, where a small net's names are a twentieth."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from onnx import ModelProto

from irtool.quant.placement import DefUse
from irtool.quant.scales import Recipe

_LEADING = re.compile(r"^t\d+")


def short_names(model: ModelProto) -> dict[str, str]:
    """Short names by the names of the tensors between nodes. Inputs, outputs and constants keep theirs; all do in a model with control flow."""
    wiring = DefUse(model)
    if wiring.inside:
        return {}
    taken = {*wiring.inputs, *wiring.outputs, *wiring.constants}
    made = [name for node in wiring.nodes for name in node.output if name and name not in taken]
    free = (name for number in range(len(made) + len(taken)) if (name := f"t{number}") not in taken)
    return dict(zip(made, free, strict=False))


def shortened(model: ModelProto, recipe: Recipe) -> tuple[ModelProto, Recipe]:
    """A model and its recipe with short names."""
    names = short_names(model)
    result = ModelProto()
    result.CopyFrom(model)
    for node in result.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        node.ClearField("name")
    for value in result.graph.value_info:
        value.name = names.get(value.name, value.name)
    return result, _renamed(recipe, names)


def _renamed(recipe: Recipe, names: Mapping[str, str]) -> Recipe:
    def new(name: str) -> str:
        return names.get(name, name)

    layers = tuple(
        replace(layer, name=new(layer.name), input=new(layer.input), output=new(layer.output)) for layer in recipe.placement.layers
    )
    tensors = {new(name): new(source) for name, source in recipe.placement.tensors.items()}
    return Recipe(
        replace(recipe.placement, layers=layers, tensors=tensors),
        {new(name): params for name, params in recipe.activations.items()},
        {new(name): layer for name, layer in recipe.layers.items()},
        recipe.bits,
    )


def long_name(name: str, names: Mapping[str, str]) -> str:
    """The name in the model of what MNN calls by a short one, perhaps with an ending of its own.

    Args:
        name: in the MNN file.
        names: short names by long ones, as `short_names` gives them.
    """
    back = {short: long for long, short in names.items()}
    return _LEADING.sub(lambda found: back.get(found.group(), found.group()), name)
