"""Storing an ONNX model's weights as half floats: for size, computed in float."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from irtool.engines.onnxruntime.prepare import replace_nodes
from irtool.quant.placement import DefUse, layers_of


def weights_to_half(model: ModelProto) -> ModelProto:
    """A copy whose layers' weights are half floats, with a Cast behind each: engines make floats of them when they load the file.

    A weight that half floats cannot hold (above 65504) stays as it is.

    Args:
        model: a float model, constants as initializers.
    """
    result = ModelProto()
    result.CopyFrom(model)
    wiring, casts, stored = DefUse(result), list[NodeProto](), dict[str, str]()
    taken = {name for node in wiring.nodes for name in (*node.input, *node.output)} | {*wiring.constants} | wiring.inside
    for layer in layers_of(result):
        weight = wiring.array(layer.weight)
        if layer.weight not in stored and np.abs(weight).max() <= np.finfo(np.float16).max:
            name = f"{layer.weight}.half"
            while name in taken:
                name += "_"
            taken.add(name)
            stored[layer.weight] = name
            casts.append(helper.make_node("Cast", [name], [layer.weight], to=TensorProto.FLOAT))
            wiring.constants[layer.weight].CopyFrom(numpy_helper.from_array(weight.astype(np.float16), name))
    shown = [value for value in result.graph.input if value.name not in stored]
    del result.graph.input[:]
    result.graph.input.extend(shown)
    replace_nodes(result, [*casts, *wiring.nodes])
    return result
