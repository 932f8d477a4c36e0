"""Repairs of what onnxruntime takes and onnx.checker does not: read as onnxruntime reads it, written right, and noted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from irtool.hosts.onnx.files.limits import names_read
from irtool.hosts.onnx.running.evaluate import Open

_INITIALISERS_ALONE = 4
"""The first IR version in which an initialiser need not be an input."""
_PRESENT = 8
"""The IR version that is written where a file names none."""


def repair(model: ModelProto) -> list[str]:
    """Put right, in place, what needs no knowledge of sizes. Returns a line for each thing that was repaired."""
    notes = []
    graph = model.graph
    inputs = {value.name for value in graph.input}
    if not model.ir_version:
        model.ir_version = _PRESENT
        notes.append(f"the file named no IR version: read as version {_PRESENT}")
    elif model.ir_version < _INITIALISERS_ALONE and any(tensor.name not in inputs for tensor in graph.initializer):
        notes.append(f"initialisers that are no inputs need IR version {_INITIALISERS_ALONE}, the file said {model.ir_version}")
        model.ir_version = _INITIALISERS_ALONE
    if not graph.name:
        graph.name = "graph"
    if _sort(graph):
        notes.append("operators that came before what they read were put in order")
    if _unnamed_domains(model):
        notes.append("operator sets that the file did not name were added")
    return notes


def _sort(graph: GraphProto) -> bool:
    """Put nodes in an order in which they can run, if they are not and there is one. Returns whether they were moved."""
    made = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    needs = [{made[name] for name in names_read(node) if name in made} for node in graph.node]
    if all(source < index for index, sources in enumerate(needs) for source in sources):
        return False
    readers: dict[int, list[int]] = {}
    for index, sources in enumerate(needs):
        for source in sources:
            readers.setdefault(source, []).append(index)
    left = [len(sources) for sources in needs]
    ready = [index for index in reversed(range(len(left))) if not left[index]]
    order: list[int] = []
    while ready:
        order.append(ready.pop())
        for reader in reversed(readers.get(order[-1], [])):
            left[reader] -= 1
            if not left[reader]:
                ready.append(reader)
    if len(order) < len(left):
        return False  # a circle, which the checker names
    nodes = [NodeProto.FromString(graph.node[index].SerializeToString()) for index in order]
    del graph.node[:]
    graph.node.extend(nodes)
    return True


def _unnamed_domains(model: ModelProto) -> bool:
    """Name the operator set of onnxruntime's own operators where the file does not, as older quantisers leave it out."""
    named = {entry.domain for entry in model.opset_import}
    missing = {node.domain for node in model.graph.node} & {"com.microsoft"} - named
    model.opset_import.extend(helper.make_opsetid(domain, 1) for domain in missing)
    return bool(missing)


def _is_open(value: ValueInfoProto) -> bool:
    kind = value.type.WhichOneof("value")
    return kind is None or (kind == "tensor_type" and not (value.type.tensor_type.HasField("shape") and value.type.tensor_type.elem_type))


@contextmanager
def closed_outputs(model: ModelProto) -> Iterator[bool]:
    """The model while every output has a type and a shape, as onnx.checker wants it: whether one had none."""
    outputs = list(model.graph.output)
    if not any(map(_is_open, outputs)):
        yield False
        return
    kept = [ValueInfoProto.FromString(value.SerializeToString()) for value in outputs]
    stated = {value.name for value in model.graph.value_info}
    for value in outputs:
        if _is_open(value) and value.name not in stated:
            kind = value.type.tensor_type.elem_type or TensorProto.FLOAT
            value.CopyFrom(helper.make_tensor_value_info(value.name, kind, ()))
    try:
        yield True
    finally:
        del model.graph.output[:]
        model.graph.output.extend(kept)


def declare_outputs(model: ModelProto, header: ModelProto, types: Mapping[str, Open]) -> list[str]:
    """Give each output of the description that has no shape, or one that contradicts the example, the shape that it has.

    Args:
        model: the program, for ONNX's own inference of the axes that are free.
        header: its description, edited in place.
        types: of the outputs, for the example's sizes; an output of unknown sizes is absent.

    Returns:
        A line for each thing that was repaired.
    """
    wrong = [value for value in header.graph.output if value.name in types and not _agrees(value, types[value.name])]
    if not wrong:
        return []
    inferred = _inferred(model, {value.name for value in wrong})
    notes = []
    for value in wrong:
        kind, shape = types[value.name]
        notes.append(f"the output {value.name!r} {'had no shape' if _is_open(value) else 'has another shape than the file said'}")
        new = inferred.get(value.name)
        if new is None or not _agrees(new, types[value.name]):
            new = helper.make_tensor_value_info(value.name, kind, [None] * len(shape))
        value.CopyFrom(new)
    return notes


def _agrees(value: ValueInfoProto, typed: Open) -> bool:
    if _is_open(value) or value.type.tensor_type.elem_type != typed[0]:
        return False
    dims = value.type.tensor_type.shape.dim
    return len(dims) == len(typed[1]) and all(
        not dim.dim_value or size is None or dim.dim_value == size for dim, size in zip(dims, typed[1], strict=True)
    )


def _inferred(model: ModelProto, names: set[str]) -> dict[str, ValueInfoProto]:
    """Shapes of some outputs by ONNX's inference over a copy that states none of them."""
    copy = ModelProto()
    copy.CopyFrom(model)
    copy.graph.ClearField("value_info")
    for value in copy.graph.output:
        if value.name in names and value.type.WhichOneof("value") == "tensor_type":
            value.type.tensor_type.ClearField("shape")
    try:
        found = onnx.shape_inference.infer_shapes(copy)
    except Exception:  # too large for it, or malformed in a way that only it minds
        return {}
    return {value.name: value for value in found.graph.output if value.name in names}
