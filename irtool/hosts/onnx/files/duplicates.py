"""Operators that compute what another one has computed already."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from irtool.hosts.onnx.edges import cleanup, redirect
from irtool.hosts.onnx.files.normalize import STANDARD
from irtool.hosts.onnx.files.subgraphs import bodies
from irtool.hosts.onnx.running.evaluate import proto_of
from irtool.hosts.onnx.running.randomness import draws

_SMALL = 64
"""Constants of at most so many entries are compared by what they hold: sizes, indices, bounds."""


def merge_duplicates(host: gs.Graph) -> int:
    """Let readers of an operator that repeats another one read the first, in place. Returns how many went.

    Two operators are the same if they have the same kind, attributes and inputs. What a body of control flow captures, and
    what is an output, keeps its own operator.
    """
    captured = {tensor.name for node in host.nodes for body in bodies(node) for inner in body.nodes for tensor in inner.inputs}
    outputs = {id(tensor) for tensor in host.outputs}
    first: dict[tuple[object, ...], gs.Node] = {}
    count = 0
    for node in list(host.nodes):
        if node.domain not in STANDARD or draws(node) or bodies(node):
            continue
        if any(id(tensor) in outputs or tensor.name in captured for tensor in node.outputs):
            continue
        same = first.setdefault(_key(node), node)
        if same is node or len(same.outputs) != len(node.outputs):
            continue
        for old, new in zip(list(node.outputs), same.outputs, strict=True):
            redirect(old, new)
        node.outputs.clear()
        count += 1
    cleanup(host)
    return count


def _key(node: gs.Node) -> tuple[object, ...]:
    proto = proto_of(node)
    proto.ClearField("name")
    proto.ClearField("doc_string")
    listed = tuple(bool(name) for name in proto.output)
    proto.ClearField("output")
    proto.ClearField("input")
    return (proto.SerializeToString(deterministic=True), listed, *map(_identity, node.inputs))


def _identity(tensor: gs.Tensor) -> object:
    if isinstance(tensor, gs.Constant) and int(tensor.values.size) <= _SMALL:
        return (str(tensor.values.dtype), tensor.values.shape, tensor.values.tobytes())
    return tensor.name
