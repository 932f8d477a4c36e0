"""The state of rewriting one model: its sizes and constants, and how rules make new nodes and constants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

Sizes = Mapping[str, Sequence[int | None]]


@dataclass
class Work:
    """A model that is rewritten in place.

    Attributes:
        model: the model.
        sizes: the shapes that are known, None for a free size.
        constants: its integer vectors, by name.
        opset: the version of ONNX's own operators.
        changed: how many changes rules made.
    """

    model: onnx.ModelProto
    sizes: Sizes
    constants: Mapping[str, list[int]]
    opset: int
    changed: int = 0

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Work:
        """Read a model."""
        opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=13)
        return cls(model, known_sizes(model), dict(whole_numbers(model)), opset)

    def held(self, node: NodeProto, what: str, array: NDArray[Any]) -> str:
        """The name of a new constant."""
        self.changed += 1
        name = f"{node.output[0]}.{what}_{self.changed}"
        self.model.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def constant(self, node: NodeProto, what: str, numbers: Sequence[int]) -> str:
        """The name of a new vector of integers."""
        return self.held(node, what, np.array(numbers, np.int64))

    def inner(self, node: NodeProto, what: str) -> str:
        """A name for a value between new nodes."""
        self.changed += 1
        return f"{node.output[0]}.{what}_{self.changed}"

    def summed(self, node: NodeProto, source: str, axis: int) -> NodeProto:
        """The node's result as a sum over one axis, as this operator set writes it."""
        self.changed += 1
        if self.opset < 13:
            return helper.make_node("ReduceSum", [source], list(node.output), node.name, axes=[axis], keepdims=0)
        return helper.make_node("ReduceSum", [source, self.constant(node, "axis", [axis])], list(node.output), node.name, keepdims=0)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The sizes of a value, where all are known."""
        sizes = self.sizes.get(name)
        known = [size for size in sizes or () if size is not None]
        return None if sizes is None or len(known) != len(sizes) else tuple(known)


Rule = Callable[[Work, NodeProto], list[NodeProto] | None]
"""Returns the nodes that take a node's place, or None where it may stay."""


def attributes(node: NodeProto) -> dict[str, Any]:
    """A node's attributes as plain values, texts as `str`."""
    found = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}


def like(
    node: NodeProto, inputs: Sequence[str], without: Sequence[str] = (), outputs: Sequence[str] | None = None, **new: Any
) -> NodeProto:
    """Make the operator anew with other inputs or outputs, without some attributes, and with new ones."""
    made = helper.make_node(node.op_type, list(inputs), list(node.output if outputs is None else outputs), node.name, **new)
    made.attribute.extend(attribute for attribute in node.attribute if attribute.name not in without and attribute.name not in new)
    return made


def whole_numbers(model: onnx.ModelProto) -> Iterator[tuple[str, list[int]]]:
    """The integer vectors that a file holds, by name."""
    for name, tensor in _tensors(model):
        if tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32) and len(tensor.dims) == 1:
            yield name, numpy_helper.to_array(tensor).tolist()


def real_numbers(model: onnx.ModelProto, name: str) -> NDArray[Any] | None:
    """A constant that a file holds, whatever its type; None if the name is not one."""
    return next((numpy_helper.to_array(tensor) for held, tensor in _tensors(model) if held == name), None)


def _tensors(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    yield from ((tensor.name, tensor) for tensor in model.graph.initializer)
    for node in model.graph.node:
        if node.op_type == "Constant":
            yield from ((node.output[0], a.t) for a in node.attribute if a.name == "value")


def known_sizes(model: onnx.ModelProto) -> dict[str, list[int | None]]:
    """The shapes that are known, None for a free size."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    found: dict[str, list[int | None]] = {
        value.name: [entry.dim_value if entry.HasField("dim_value") else None for entry in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }
    return found | {tensor.name: list(tensor.dims) for tensor in graph.initializer}
