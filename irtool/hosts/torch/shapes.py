"""Output shapes by formula, where running the operator on the meta device would be slower."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from irtool.hosts.torch.operators import Spec
from irtool.ir.graph import Value


def infer_shape(spec: Spec | None, operands: Mapping[str, Value], attrs: Mapping[str, Any], callee: str) -> tuple[int, ...] | None:
    """The output shape where a formula is at hand; None where the operator must be run (it also says what does not fit)."""
    rule = SHAPES.get(spec.shape) if spec is not None else None
    return rule(operands, attrs, callee) if rule is not None and operands else None


def _same(operands: Mapping[str, Value], attrs: Mapping[str, Any], callee: str) -> tuple[int, ...]:
    return next(iter(operands.values())).sizes


def _same_value(operands: Mapping[str, Value], attrs: Mapping[str, Any], callee: str) -> tuple[int, ...] | None:
    if "attn_mask" in operands:  # it must fit the heads, which torch checks
        return None
    return (*operands["input"].sizes[:-1], operands["value"].sizes[-1]) if "value" in operands else _same(operands, attrs, callee)


def _broadcast(operands: Mapping[str, Value], attrs: Mapping[str, Any], callee: str) -> tuple[int, ...] | None:
    values = list(operands.values())
    if any(value.dtype != values[0].dtype for value in values):
        return None
    result = values[0].sizes
    for value in values[1:]:
        if value.sizes != result:
            rank = max(len(result), len(value.sizes))
            pairs = [((1,) * (rank - len(shape)) + shape) for shape in (result, value.sizes)]
            if any(1 not in pair and pair[0] != pair[1] for pair in zip(*pairs, strict=True)):
                return None
            result = tuple(b if a == 1 else a for a, b in zip(*pairs, strict=True))
    return result


def _linear(operands: Mapping[str, Value], attrs: Mapping[str, Any], callee: str) -> tuple[int, ...] | None:
    x, weight = operands["input"].sizes, operands.get("weight")
    if weight is None or x[-1] != weight.sizes[-1]:
        return None
    return (*x[:-1], *weight.sizes[:-1])


def _conv(operands: Mapping[str, Value], attrs: Mapping[str, Any], callee: str) -> tuple[int, ...] | None:
    """floor((in + 2*padding - dilation*(kernel-1) - 1) / stride) + 1 (torch.nn.Conv2d's documentation)."""
    x, weight = operands["input"].sizes, operands["weight"].sizes
    n = len(weight) - 2
    stride, padding, dilation = (_spread(attrs.get(name, default), n) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1)))
    if stride is None or padding is None or dilation is None or len(x) != len(weight) or x[1] != weight[1] * (attrs.get("groups") or 1):
        return None
    spatial = ((x[i + 2] + 2 * padding[i] - dilation[i] * (weight[i + 2] - 1) - 1) // stride[i] + 1 for i in range(n))
    return (x[0], weight[0], *spatial)


def _spread(value: Any, n: int) -> tuple[int, ...] | None:
    if isinstance(value, int):
        return (value,) * n
    if isinstance(value, tuple | list) and all(isinstance(item, int) for item in value):
        return tuple(value) * n if len(value) == 1 else tuple(value)
    return None


def _concat(operands: Mapping[str, Value], attrs: Mapping[str, Any], callee: str) -> tuple[int, ...] | None:
    shapes, dim = [value.sizes for value in operands.values()], attrs.get("dim", 0)
    if not isinstance(dim, int) or len({len(shape) for shape in shapes}) > 1 or len({value.dtype for value in operands.values()}) > 1:
        return None
    axis = dim % len(shapes[0])
    return tuple(sum(shape[d] for shape in shapes) if d == axis else size for d, size in enumerate(shapes[0]))


def _adaptive(operands: Mapping[str, Value], attrs: Mapping[str, Any], callee: str) -> tuple[int, ...] | None:
    """The last one to three axes take the size that is asked for; how many is in the name (`adaptive_avg_pool2d`)."""
    x, axes = operands["input"].sizes, next((int(digit) for digit in callee if digit in "123"), 0)
    size = _spread(attrs.get("output_size"), axes)
    return (*x[: len(x) - axes], *size) if size is not None and len(size) == axes > 0 else None


Rule = Callable[[Mapping[str, Value], Mapping[str, Any], str], tuple[int, ...] | None]
"""(operands, attributes, name of the callee) -> shape."""

SHAPES: dict[str, Rule] = {
    "same": _same, "same_value": _same_value, "broadcast": _broadcast, "linear": _linear, "conv": _conv, "concat": _concat, "adaptive": _adaptive,
}  # fmt: skip
