"""Masked against sliced for ONNX graphs: both run in onnxruntime, in the float32 that the file is made for.

The reference is the original model with zeros put in after every node whose output carries a removed channel; no weight
of it is touched. An operator that mixes channels is given those that stay. Quantised values are masked where they are
made real again: their 0 is not zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

import numpy as np
import onnx_graphsurgeon as gs
import torch
from onnx import helper
from torch import Tensor

from irtool.channels.labels import Labels, mixes
from irtool.hosts.onnx.evaluate import Array, element_type, proto_of
from irtool.hosts.onnx.graph import OnnxGraph
from irtool.hosts.onnx.interpreter import run_model
from irtool.ir.graph import Node, Value
from irtool.pruning.absorb.reference import Run
from irtool.pruning.onnx_kept import on_survivors

_WHERE = 9
"""The first operator set that can choose."""


def masked_model(
    graph: OnnxGraph, labels: Labels, keep: Tensor, added: Mapping[str, Array] | None = None, *, survivors: bool = True
) -> tuple[OnnxGraph, tuple[str, ...]]:
    """A copy of the original whose removed channels become 0 wherever they are made or moved.

    Args:
        graph: the graph that `labels` was made from.
        labels: the first walk.
        keep: whether each label stays, shape (labels,).
        added: for a node's name, a constant that its output gains first (of a shape that broadcasts).
        survivors: compute operators that mix channels from those that stay, as the sliced graph does.

    Returns:
        The copy, and the operators that mix channels and have no such form.
    """
    mixers = {node.name for node, table, _ in labels.inexacts if survivors and mixes(table, keep)}
    unresolved: list[str] = []
    host = graph.host.copy()
    views = {node.name: node for node in labels.graph.nodes if node.host is not None}
    nodes: list[gs.Node] = []
    for own in host.nodes:
        node = views.get(own.name)
        outputs = list(own.outputs)
        instead = (
            on_survivors(node, own, _masks(labels, keep, node.input), graph.opset) if node is not None and node.name in mixers else None
        )
        nodes += [own] if instead is None else instead
        if node is None:
            continue
        if node.name in mixers and instead is None:
            unresolved.append(node.location)
        tensors = {tensor.name: tensor for tensor in outputs}
        for value in node.outputs:
            masks = _masks(labels, keep, value)
            constant = (added or {}).get(node.name)
            if constant is not None:
                nodes.append(_after(tensors[value.name], "Add", constant))
            if masks and value.dtype is not None and value.dtype.is_floating_point:
                stays = reduce(torch.logical_and, masks)
                nodes.append(_masked(tensors[value.name], stays.numpy(), _numpy(value.dtype), graph.opset))
    host.nodes = nodes
    return graph.with_host(host), tuple(unresolved)


def _masks(labels: Labels, keep: Tensor, value: Value) -> list[Tensor]:
    """Which channels stay, for each of a value's label tensors that loses some."""
    masks = [torch.where(found >= 0, keep[found], True) for found in labels.parts(value)] if keep.numel() else []
    return [mask for mask in masks if not bool(mask.all())]


def _masked(tensor: gs.Variable, stays: Array, dtype: np.dtype, opset: int) -> gs.Node:
    """Zeros where a channel was removed: chosen, since what is infinite there (a division by a masked 0) times 0 is NaN."""
    if opset < _WHERE:
        return _after(tensor, "Mul", stays.astype(dtype))
    node = _after(tensor, "Where", stays)
    node.inputs = [node.inputs[1], node.inputs[0], gs.Constant(f"{tensor.name}.zero", np.zeros((), dtype))]
    return node


def _after(tensor: gs.Variable, op: str, constant: Array) -> gs.Node:
    """A new operator between a value and all its readers, graph outputs included: the value's name moves to the new result."""
    node = tensor.inputs[0]
    place = next(index for index, output in enumerate(node.outputs) if output is tensor)
    raw = gs.Variable(f"{tensor.name}.before{op}")
    node.outputs[place] = raw
    second = gs.Constant(f"{raw.name}.constant", constant)
    return gs.Node(op, f"{raw.name}.{op}", inputs=[raw, second], outputs=[tensor])


def before_saturation(graph: OnnxGraph) -> list[str]:
    """Where to compare: the outputs (or what stands for them, see `OnnxGraph.compared`), or what goes into a sigmoid or softmax
    that makes one.

    onnxruntime's float32 sigmoid is right to 1e-7 absolute, which is no measure where all of its results are near 0; a
    softmax that is sure of itself hides any difference.
    """
    found = []
    makers = {value.name: node for node in graph.nodes for value in node.outputs}
    for name in graph.compared():
        node = makers.get(name)
        found.append(node.input.name if node is not None and node.op in ("Sigmoid", "Softmax") else name)
    return found


def _numpy(dtype: torch.dtype) -> np.dtype:
    return torch.empty(0, dtype=dtype).numpy().dtype


def on_onnxruntime(graph: OnnxGraph) -> Run:
    """Layers as onnxruntime runs them; the results in float64."""

    def run(node: Node, x: Tensor) -> Tensor:
        made = _run_layer(graph, node, np.ascontiguousarray(x.to(torch.float32).numpy()))
        return torch.from_numpy(made.astype(np.float64))

    return run


def _run_layer(graph: OnnxGraph, node: Node, x: Array) -> Array:
    host = node.host
    weights = [t for t in host.inputs[1:] if t.name]
    infos = [helper.make_tensor_value_info(t.name, element_type(t.dtype), t.shape) for t in weights]
    data = helper.make_tensor_value_info(host.inputs[0].name, element_type(x.dtype), x.shape)
    body = helper.make_graph([proto_of(host)], "layer", [data, *infos], [helper.make_empty_tensor_value_info(host.outputs[0].name)])
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", graph.opset)], ir_version=8)
    return run_model(model, {host.inputs[0].name: x, **{t.name: t.values for t in weights}}, [host.outputs[0].name])[0]


def held_model(graph: OnnxGraph, constants: Mapping[str, Tensor]) -> OnnxGraph:
    """A copy in which some nodes give constants, by name: their results are multiplied by zero, and the constants added."""
    host = graph.host.copy()
    for node in list(host.nodes):
        if node.name not in constants:
            continue
        output = node.outputs[0]
        made, none = (gs.Variable(f"{output.name}.{part}", output.dtype, output.shape) for part in ("made", "none"))
        node.outputs[0] = made
        zero, constant = (gs.Constant(f"{output.name}.{part}", data.numpy().astype("float32"))
                          for part, data in (("zero", torch.zeros(())), ("constant", constants[node.name])))  # fmt: skip
        host.nodes += [gs.Node("Mul", f"{node.name}.none", {}, [made, zero], [none]), gs.Node("Add", f"{node.name}.held", {}, [none, constant], [output])]  # fmt: skip
    host.toposort()
    return graph.with_host(host)
