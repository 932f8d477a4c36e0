"""Whether a node's operands fit each other: ONNX's shape inference takes many that no engine runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from irtool.errors import GraphError
from irtool.ir.graph import Node


def check_fit(node: Node) -> None:
    """Raises GraphError, naming the node, where the operands' sizes contradict each other."""
    rule = RULES.get(node.op)
    if rule is not None and node.operands and not rule(node):
        sizes = ", ".join("x".join(map(str, value.sizes)) or "scalar" for value in node.inputs)
        raise GraphError(
            f"sizes {sizes} do not fit {node.op}",
            where=node.location,
            remedy="Check the model with onnx.checker, or give other example sizes.",
        )


def _conv(node: Node) -> bool:
    x, weight, bias = node.input, node.get("weight"), node.get("bias")
    groups = node.attrs["group"]
    if weight is None or len(x.sizes) < 3 or len(weight.sizes) != len(x.sizes) or groups < 1 or x.sizes[1] % groups:
        return False
    transposed = node.op == "ConvTranspose"
    outputs = weight.sizes[1] * groups if transposed else weight.sizes[0]
    inputs = weight.sizes[0] if transposed else weight.sizes[1] * groups
    fits = inputs == x.sizes[1] and outputs % groups == 0 and len(node.output.sizes) == len(x.sizes) and node.output.sizes[1] == outputs
    return fits and (bias is None or bias.sizes == (outputs,))


def _gemm(node: Node) -> bool:
    weight = node.get("weight")
    if weight is None or len(weight.sizes) != 2:
        return False
    inputs, outputs = reversed(weight.sizes) if node.attrs["transB"] else weight.sizes
    return node.input.sizes[-1] == inputs and node.output.sizes[-1] == outputs


def _per_channel(node: Node) -> bool:
    parameters = [value for role, value in node.operands.items() if role != "input"]
    return len(node.input.sizes) > 1 and all(value.sizes == (node.input.sizes[1],) for value in parameters)


def _over_last_axes(node: Node) -> bool:
    """Scale and shift are stretched to the axes that are normalised."""
    shape = node.input.sizes[node.attrs["axis"] :]
    parameters = [value.sizes for role, value in node.operands.items() if role != "input"]
    return all(
        len(sizes) <= len(shape) and all(own in (1, size) for own, size in zip(reversed(sizes), reversed(shape), strict=False))
        for sizes in parameters
    )


def _same_count(node: Node) -> bool:
    return math.prod(node.input.sizes) == math.prod(node.output.sizes)


def _same_rank(node: Node) -> bool:
    return len(node.input.sizes) == len(node.output.sizes)


def _matmul(node: Node) -> bool:
    a, b = node.inputs[0].sizes, node.inputs[-1].sizes
    return bool(a and b) and a[-1] == b[-2 if len(b) > 1 else -1]


def _broadcast(node: Node) -> bool:
    """The slope is stretched to the input, never the input to the slope."""
    weight, sizes = node.get("weight"), node.input.sizes
    if weight is None or len(weight.sizes) > len(sizes):
        return False
    return all(own in (1, size) for own, size in zip(reversed(weight.sizes), reversed(sizes), strict=False))


RULES: Mapping[str, Callable[[Node], bool]] = {
    "Conv": _conv,
    "ConvTranspose": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "PRelu": _broadcast,
    "BatchNormalization": _per_channel,
    "InstanceNormalization": _per_channel,
    "GroupNormalization": _per_channel,
    "LayerNormalization": _over_last_axes,
    "RMSNormalization": _over_last_axes,
    "Reshape": _same_count,
    "Pool": _same_rank,
    "Resize": _same_rank,
}
