"""Placement of int8: the tensors of an ONNX graph that are stored as integers, and those of them that share one scale.

The rule is the engines' own: a layer (a convolution or product with a constant weight) computes in integers if its input
and output are integers; an operator that joins or moves tensors does if all its tensors are. So integers are spread from
the layers, and a quantise or dequantise step stands only where they end.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

from irtool.ops.integers import ENDINGS, JOINS, LAYERS, MOVES, POSITIVE, RECTIFIERS


@dataclass(frozen=True)
class Layer:
    """A convolution, Gemm or MatMul with a constant weight.

    Attributes:
        name: its key: the name of its own output.
        op: the operator.
        input, output: tensors; the output is the one after a fused activation.
        weight, bias: names of initializers; the bias may be absent.
        axis: the output channels' axis of the weight.
        node: the index of its node in the model.
        groups: of a convolution.
    """

    name: str
    op: str
    input: str
    output: str
    weight: str
    bias: str | None
    axis: int
    node: int
    groups: int = 1

    def rows(self, weight: np.ndarray) -> np.ndarray:
        """The weight as (output channels, everything else)."""
        return np.moveaxis(weight, self.axis, 0).reshape(weight.shape[self.axis], -1)

    def unrows(self, rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Rows as a weight of this shape: the inverse of `rows`."""
        outputs_first = (shape[self.axis], *shape[: self.axis], *shape[self.axis + 1 :])
        return np.ascontiguousarray(np.moveaxis(rows.reshape(outputs_first), 0, self.axis))


@dataclass(frozen=True)
class Placement:
    """The operators and tensors that are in integers.

    Attributes:
        layers: the layers that compute in integers.
        tensors: each quantised tensor, and the tensor whose scale it has (mostly itself).
        integer: indices of the nodes that compute in integers, layers included.
        floating: each other node's reason, by index.
    """

    layers: tuple[Layer, ...]
    tensors: Mapping[str, str]
    integer: frozenset[int] = frozenset()
    floating: Mapping[int, str] = field(default_factory=dict)

    @property
    def observed(self) -> tuple[str, ...]:
        """The tensors whose ranges must be known."""
        return tuple(dict.fromkeys(self.tensors.values()))


Sizes = tuple[int | None, ...]


def _sizes(shape: onnx.TensorShapeProto) -> Sizes:
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in shape.dim)


def _names_inside(node: NodeProto) -> Iterator[str]:
    """All names of tensors and nodes in the bodies of a control-flow node, at any depth."""
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs) if attribute.HasField("g") or attribute.graphs else ():
            yield from (value.name for value in (*body.input, *body.output, *body.initializer, *body.value_info))
            for inner in body.node:
                yield from (inner.name, *inner.input, *inner.output)
                yield from _names_inside(inner)


class DefUse:
    """Producer and readers of each tensor of a model (its def-use index)."""

    def __init__(self, model: ModelProto) -> None:
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.outputs = [value.name for value in model.graph.output]
        self.inputs = [value.name for value in model.graph.input if value.name not in self.constants]
        described = (*model.graph.value_info, *model.graph.input, *model.graph.output)
        self.shapes = {v.name: _sizes(v.type.tensor_type.shape) for v in described if v.type.tensor_type.HasField("shape")}
        """As far as the model says them; free sizes are None."""
        self.producer = {name: index for index, node in enumerate(self.nodes) for name in node.output if name}
        self.readers: dict[str, list[int]] = {}
        for index, node in enumerate(self.nodes):
            for name in node.input:
                self.readers.setdefault(name, []).append(index)
        self.inside = {name for node in self.nodes for name in _names_inside(node)}
        """Names in the bodies of control flow: what these read of the graph around them, and their own."""

    def data_inputs(self, node: NodeProto) -> list[str]:
        """The inputs that are not constants."""
        return [name for name in node.input if name and name not in self.constants]

    def array(self, name: str) -> np.ndarray:
        """A constant's values."""
        return numpy_helper.to_array(self.constants[name])

    def only_reader(self, name: str) -> NodeProto | None:
        """The node that alone reads a tensor which is no output of the graph."""
        readers = self.readers.get(name, [])
        outside = name in self.outputs or name in self.inside
        return self.nodes[readers[0]] if len(readers) == 1 and not outside else None


@dataclass(frozen=True)
class Int8Policy:
    """The choice of tensors and layers that an engine is given in integers.

    Attributes:
        outputs: whether a result of the model may be an integer inside. A convolution's always is, since no engine has an
            integer convolution with a float result; onnxruntime has such a product.
        unfit: the nodes that the engine computes wrong in integers, and the reason, by index.
        better: the reason why a layer is better left in float in this engine, where there is one.
    """

    outputs: bool = False
    unfit: Callable[[DefUse], Mapping[int, str]] = lambda _wiring: {}
    better: Callable[[DefUse, Layer], str | None] = lambda _wiring, _layer: None


PLAIN = Int8Policy()
"""Whatever can be an integer is one, but for the results of products: what onnxruntime computes."""


def non_negative(wiring: DefUse) -> set[str]:
    """The tensors between nodes that cannot be negative, whatever the model reads."""
    found: set[str] = set()

    def holds(name: str) -> bool:
        return name in found or (name in wiring.constants and bool((wiring.array(name) >= 0).all()))

    for node in wiring.nodes:  # makers come before readers
        given = node.input[:1] if node.op_type in MOVES else [name for name in node.input if name]
        keeps = node.op_type in JOINS | MOVES and all(map(holds, given))
        if keeps or node.op_type in POSITIVE or _rectifies(wiring, node):
            found.update(node.output)
    return found


def is_result(wiring: DefUse, name: str) -> bool:
    """Whether a tensor is an output of the model, or becomes one without another layer: moved, resized, by a softmax."""
    readers = [wiring.nodes[index] for index in wiring.readers.get(name, [])]
    return name in wiring.outputs or any(node.op_type in MOVES | ENDINGS and is_result(wiring, node.output[0]) for node in readers)


def layers_of(model: ModelProto) -> tuple[Layer, ...]:
    """All layers of a model, in order."""
    wiring = DefUse(model)
    found = (_layer(wiring, index, node) for index, node in enumerate(wiring.nodes))
    return tuple(layer for layer in found if layer is not None)


def place(model: ModelProto, policy: Int8Policy = PLAIN, floating: Collection[str] = (), *, joins: bool = True) -> Placement:
    """Decide where integers are.

    Args:
        model: as `prepared` returns it, batch norms folded.
        policy: the engine's, as `ENGINES[name].int8.policy` has it.
        floating: the names of layers that stay in float, beside those that the engine computes better so.
        joins: whether operators between layers compute in integers too; without, only the layers do.
    """
    wiring = DefUse(model)
    everything = {layer.node: layer for layer in layers_of(model)}
    reasons = {index: why for index, layer in everything.items() if (why := policy.better(wiring, layer))}
    reasons |= {index: "left in float" for index, layer in everything.items() if layer.name in floating}
    layers = {index: layer for index, layer in everything.items() if index not in reasons}
    tensors: dict[str, str] = {}
    for layer in layers.values():
        tensors.setdefault(layer.input, layer.input)
        if policy.outputs or layer.op == "Conv" or layer.output not in wiring.outputs:
            tensors.setdefault(layer.output, layer.output)
    integer = set(layers)
    unfit = policy.unfit(wiring)
    for index, node in enumerate(wiring.nodes):
        if index in everything or (node.op_type in RECTIFIERS and node.output[0] in tensors):
            continue
        reason = unfit[index] if index in unfit else _spread(wiring, node, tensors, joins, policy)
        if reason is None:
            integer.add(index)
        else:
            reasons[index] = reason
    return Placement(tuple(layers.values()), _resolved(tensors), frozenset(integer), reasons)


def _spread(wiring: DefUse, node: NodeProto, tensors: dict[str, str], joins: bool, policy: Int8Policy) -> str | None:
    """Make a join's output integers if its inputs are; else the reason why it stays in float."""
    if node.op_type not in JOINS | MOVES:
        return f"{node.op_type} has no integer form"
    if not joins:
        return "only layers are quantised"
    given = wiring.data_inputs(node)
    if not given or any(name not in tensors for name in given):
        return "an input is in float"
    moves = node.op_type in MOVES
    if not moves and len(given) < len([name for name in node.input if name]):
        return "an operand is a constant"
    if not policy.outputs and any(name in wiring.outputs for name in node.output):
        return "its result is the model's"
    if moves:
        tensors.update(
            dict.fromkeys(node.output[:1] if node.op_type == "MaxPool" else node.output, given[0])
        )  # MaxPool's second are places
    else:
        tensors.setdefault(rectified(wiring, node.output[0]), rectified(wiring, node.output[0]))
    return None


def _resolved(tensors: Mapping[str, str]) -> dict[str, str]:
    def end(name: str) -> str:
        while tensors[name] != name:
            name = tensors[name]
        return name

    return {name: end(name) for name in tensors}


def _layer(wiring: DefUse, index: int, node: NodeProto) -> Layer | None:
    if node.op_type not in LAYERS or len(node.input) < 2:
        return None
    data, weight = node.input[:2]
    bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
    if data in wiring.constants or weight not in wiring.constants or (bias is not None and bias not in wiring.constants):
        return None
    if wiring.constants[weight].data_type != onnx.TensorProto.FLOAT:
        return None
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    kind = LAYERS[node.op_type]
    if not kind.fits(attributes, len(wiring.constants[weight].dims), None if bias is None else len(wiring.constants[bias].dims)):
        return None
    axis = 0 if attributes.get("transB") else kind.axis
    output = rectified(wiring, node.output[0])
    return Layer(node.output[0], node.op_type, data, output, weight, bias, axis, index, int(attributes.get("group", 1)))


def rectified(wiring: DefUse, name: str) -> str:
    """The tensor after an activation that the integer range can replace, or the tensor itself.

    A ReLU, or a Clip from 0, is what clipping to a range that begins at 0 does. The tensor before it must have no other reader.
    """
    reader = wiring.only_reader(name)
    if reader is None or not _rectifies(wiring, reader) or reader.input[0] != name:
        return name
    return reader.output[0]


def _rectifies(wiring: DefUse, node: NodeProto) -> bool:
    if node.op_type != "Clip":
        return node.op_type in RECTIFIERS
    low = node.input[1] if len(node.input) > 1 else ""
    return low in wiring.constants and float(wiring.array(low)) == 0.0
