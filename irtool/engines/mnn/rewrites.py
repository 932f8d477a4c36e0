"""Rewrites of operators that MNN's converter refuses or misreads, into others of the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, helper, inliner, numpy_helper

Sizes = Mapping[str, Sequence[int | None]]


def rewrite(model: onnx.ModelProto) -> bool:
    """Rewrite a model in place; whether there was anything to rewrite.

    - Calls of local functions become what these do.
    - Pad with axes pads all axes, most of them by nothing.
    - Split in a number of pieces states their sizes, where they differ.
    - A matrix times a vector is written as products that are added up.
    """
    functions = bool(model.functions)
    if functions:
        model.CopyFrom(inliner.inline_local_functions(model))
    if not any(node.op_type in _RULES for node in model.graph.node):
        return functions
    work = _Work.of(model)
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        rule = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        nodes += (rule(work, node) if rule is not None else None) or [node]
    if not work.changed:
        return functions
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    model.graph.ClearField("node")
    model.graph.node.extend(copies)
    return True


@dataclass
class _Work:
    model: onnx.ModelProto
    sizes: Sizes
    constants: Mapping[str, list[int]]
    opset: int
    changed: int = 0

    @classmethod
    def of(cls, model: onnx.ModelProto) -> _Work:
        opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=13)
        return cls(model, known_sizes(model), dict(whole_numbers(model)), opset)

    def constant(self, node: NodeProto, what: str, numbers: Sequence[int]) -> str:
        """The name of a new vector of integers."""
        self.changed += 1
        name = f"{node.output[0]}.{what}_{self.changed}"
        self.model.graph.initializer.append(numpy_helper.from_array(np.array(numbers, np.int64), name))
        return name

    def summed(self, node: NodeProto, source: str, axis: int) -> NodeProto:
        """The node's result as a sum over one axis, as this operator set writes it."""
        self.changed += 1
        if self.opset < 13:
            return helper.make_node("ReduceSum", [source], list(node.output), node.name, axes=[axis], keepdims=0)
        return helper.make_node("ReduceSum", [source, self.constant(node, "axis", [axis])], list(node.output), node.name, keepdims=0)


def _pad(work: _Work, node: NodeProto) -> list[NodeProto] | None:
    held, pads = ("".join(node.input[index : index + 1]) for index in (3, 1))
    rank = len(work.sizes.get(node.input[0], ()))
    axes, amounts = work.constants.get(held), work.constants.get(pads)
    if not rank or axes is None or amounts is None:
        return None
    full = [0] * (2 * rank)
    for place, axis in enumerate(axes):
        full[axis % rank], full[rank + axis % rank] = amounts[place], amounts[place + len(axes)]
    return [_like(node, [node.input[0], work.constant(node, "pads", full), *node.input[2:3]])]


def _split(work: _Work, node: NodeProto) -> list[NodeProto] | None:
    values = {attribute.name: attribute.i for attribute in node.attribute}
    sizes = work.sizes.get(node.input[0], ())
    count, axis = values.get("num_outputs"), values.get("axis", 0)
    size = sizes[axis] if -len(sizes) <= axis < len(sizes) else None
    if not count or size is None or not size % count:
        return None
    each = -(-size // count)
    pieces = [min(each, max(size - each * place, 0)) for place in range(count)]
    return [_like(node, [node.input[0], work.constant(node, "sizes", pieces)], without="num_outputs")]


def _matmul(work: _Work, node: NodeProto) -> list[NodeProto] | None:
    left, right = (work.sizes.get(name) for name in node.input)
    if right is None or len(right) != 1 or left is None or len(left) < 2:
        return None
    products = f"{node.output[0]}.products"
    return [
        helper.make_node("Mul", list(node.input), [products], products),
        work.summed(node, products, len(left) - 1),
    ]


_RULES: Mapping[str, Callable[[_Work, NodeProto], list[NodeProto] | None]] = {"Pad": _pad, "Split": _split, "MatMul": _matmul}


def _like(node: NodeProto, inputs: Sequence[str], without: str = "") -> NodeProto:
    """Make the operator anew with other inputs, and without an attribute."""
    made = helper.make_node(node.op_type, list(inputs), list(node.output), node.name)
    made.attribute.extend(attribute for attribute in node.attribute if attribute.name != without)
    return made


def whole_numbers(model: onnx.ModelProto) -> Iterator[tuple[str, list[int]]]:
    """The integer vectors that a file holds, by name."""
    tensors = [(tensor.name, tensor) for tensor in model.graph.initializer]
    tensors += [
        (node.output[0], a.t) for node in model.graph.node if node.op_type == "Constant" for a in node.attribute if a.name == "value"
    ]
    for name, tensor in tensors:
        if tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32) and len(tensor.dims) == 1:
            yield name, numpy_helper.to_array(tensor).tolist()


def known_sizes(model: onnx.ModelProto) -> dict[str, list[int | None]]:
    """The shapes that are known, None for a free size."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    found: dict[str, list[int | None]] = {
        value.name: [entry.dim_value if entry.HasField("dim_value") else None for entry in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info)
        if value.type.tensor_type.HasField("shape")
    }
    return found | {tensor.name: list(tensor.dims) for tensor in graph.initializer}
