"""Bringing an ONNX model into the form that placement knows: constants as initializers, spatial means as pools."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx
import onnx.version_converter
from onnx import ModelProto, NodeProto, helper, numpy_helper

from irtool.errors import ExportError
from irtool.hosts.onnx.files.file import is_large, opset_of
from irtool.quant.placement import DefUse

OLDEST = 13
"""The first operator set whose steps in and out of integers take one scale a channel."""
RENEWED = 17
"""The operator set that older files are converted to."""


def renewed(model: ModelProto) -> ModelProto:
    """Return the model in an operator set whose steps in and out of integers take one scale a channel: itself if it has one.

    Raises:
        ExportError: it cannot be converted.
    """
    if (opset_of(model) or OLDEST) >= OLDEST:
        return model
    try:
        return onnx.version_converter.convert_version(model, RENEWED)
    except Exception as error:  # the converter's C++ part raises types of its own
        raise ExportError(
            f"operator set {opset_of(model)} cannot be converted to {RENEWED}",
            where="quantize",
            remedy=f"Export the model with opset {OLDEST} or newer.",
        ) from error


def prepared(model: ModelProto) -> ModelProto:
    """An equal model that says its tensors' shapes, as far as they can be told. The names of tensors between nodes stay.

    - A `Constant` node with a tensor becomes an initializer.
    - `ReduceMean` over the axes 2 and 3 of an image becomes `GlobalAveragePool`, which engines have in integers, with a
      `Flatten` where the axes are dropped.
    - `Pad` and `Resize` of some axes become those of all axes: onnxruntime takes amounts and sizes for those of all, where it changes the
      layout around integers.
    """
    result = _with_shapes(model)
    _hold_constants(result)
    wiring, rewritten = DefUse(result), list[NodeProto]()
    for node in wiring.nodes:
        rewritten += _REWRITES.get(node.op_type, lambda node, _wiring: [node])(node, wiring)
    replace_nodes(result, rewritten)
    _hold_constants(result)
    return result


def _hold_constants(model: ModelProto) -> None:
    """Make initializers of `Constant` nodes with a tensor."""
    kept: list[NodeProto] = []
    for node in model.graph.node:
        tensor = _constant(node)
        if tensor is None:
            kept.append(node)
            continue
        tensor.name = node.output[0]
        model.graph.initializer.append(tensor)
    if len(kept) < len(model.graph.node):
        replace_nodes(model, kept)


def _with_shapes(model: ModelProto) -> ModelProto:
    """A copy. ONNX's shape inference leaves out what it does not know; it takes no model above 2 GiB."""
    if not is_large(model):
        try:
            return onnx.shape_inference.infer_shapes(model, data_prop=True)
        except onnx.shape_inference.InferenceError:
            pass
    result = ModelProto()
    result.CopyFrom(model)
    return result


def replace_nodes(model: ModelProto, nodes: Iterable[NodeProto]) -> None:
    """Put nodes, some of which may be the model's own, in the place of all that it has."""
    copies = []
    for node in nodes:
        copy = NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    del model.graph.node[:]
    model.graph.node.extend(copies)


def drop_unread(model: ModelProto) -> None:
    """Drop the constants that nothing reads any more. One that a file lists among its inputs too would be an input that nobody gives."""
    wiring = DefUse(model)
    gone = wiring.constants.keys() - {*wiring.readers, *wiring.outputs, *wiring.inside}
    for held in (model.graph.initializer, model.graph.input):
        kept = [entry for entry in held if entry.name not in gone]
        del held[:]
        held.extend(kept)


def _constant(node: NodeProto) -> onnx.TensorProto | None:
    if node.op_type != "Constant":
        return None
    for attribute in node.attribute:
        if attribute.name == "value":
            return attribute.t
        if attribute.name in ("value_float", "value_int", "value_floats", "value_ints"):
            value = helper.get_attribute_value(attribute)
            kind = np.float32 if "float" in attribute.name else np.int64
            return numpy_helper.from_array(np.asarray(value, kind))
    return None


def _mean(node: NodeProto, wiring: DefUse) -> list[NodeProto]:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    axes = attributes.get("axes")
    if axes is None and len(node.input) > 1 and node.input[1] in wiring.constants:
        axes = wiring.array(node.input[1]).tolist()
    if list(axes or ()) not in ([2, 3], [-2, -1]) or len(wiring.shapes.get(node.input[0], ())) != 4:
        return [node]
    if attributes.get("keepdims", 1):
        return [helper.make_node("GlobalAveragePool", node.input[:1], node.output, node.name)]
    pooled = f"{node.output[0]}.pooled"
    return [
        helper.make_node("GlobalAveragePool", node.input[:1], [pooled], f"{node.name}.pool"),
        helper.make_node("Flatten", [pooled], node.output, node.name, axis=1),
    ]


def _pad(node: NodeProto, wiring: DefUse) -> list[NodeProto]:
    axes, rank = "".join(node.input[3:4]), len(wiring.shapes.get(node.input[0], ()))
    if axes not in wiring.constants or not rank:
        return [node]
    return full_pad(node, wiring.array(axes).tolist(), rank)


def full_pad(node: NodeProto, axes: list[int], rank: int) -> list[NodeProto]:
    """Nodes that pad all axes of a tensor, most of them by nothing, in the place of one that pads some; the amounts may be computed."""
    name = f"{node.output[0]}.pads"
    held = [axis % rank for axis in axes]
    places = [held.index(axis) + side * len(held) if axis in held else 2 * len(held) for side in (0, 1) for axis in range(rank)]
    constants = {f"{name}.none": np.zeros(1, np.int64), f"{name}.places": np.array(places, np.int64)}
    padded = helper.make_node("Pad", [node.input[0], name, *([node.input[2]] if node.input[2] else [])], node.output, node.name)
    padded.attribute.extend(node.attribute)
    return [
        *(helper.make_node("Constant", [], [key], key, value=numpy_helper.from_array(array, key)) for key, array in constants.items()),
        helper.make_node("Concat", [node.input[1], f"{name}.none"], [f"{name}.listed"], f"{name}.listed", axis=0),
        helper.make_node("Gather", [f"{name}.listed", f"{name}.places"], [name], name, axis=0),
        padded,
    ]


def _resize(node: NodeProto, wiring: DefUse) -> list[NodeProto]:
    """Sizes of the other axes are those that they have; factors of theirs are 1."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    rank, shape = len(wiring.shapes.get(node.input[0], ())), f"{node.output[0]}.shape"
    index = next((place for place in (2, 3) if len(node.input) > place and node.input[place]), None)
    plain = attributes.get("keep_aspect_ratio_policy", b"stretch") == b"stretch" and not "".join(node.input[1:2])
    if "axes" not in attributes or not rank or index is None or not plain:  # a region to resize from stands for the same axes
        return [node]
    held = [axis % rank for axis in attributes["axes"]]
    places = np.array([held.index(axis) if axis in held else len(held) + axis for axis in range(rank)], np.int64)
    name = f"{shape}.all"
    made = [
        helper.make_node("Shape", [node.input[0]], [shape], shape)
        if index == 3
        else helper.make_node("Constant", [], [shape], shape, value=numpy_helper.from_array(np.ones(rank, np.float32), shape)),
        helper.make_node("Constant", [], [f"{shape}.places"], f"{shape}.places", value=numpy_helper.from_array(places, shape)),
        helper.make_node("Concat", [node.input[index], shape], [f"{shape}.listed"], f"{shape}.listed", axis=0),
        helper.make_node("Gather", [f"{shape}.listed", f"{shape}.places"], [name], name, axis=0),
    ]
    inputs = [node.input[0], "", *([""] if index == 3 else []), name]
    resized = helper.make_node("Resize", inputs, node.output, node.name)
    resized.attribute.extend(attribute for attribute in node.attribute if attribute.name != "axes")
    return [*made, resized]


_REWRITES: dict[str, Callable[[NodeProto, DefUse], list[NodeProto]]] = {"Pad": _pad, "ReduceMean": _mean, "Resize": _resize}
