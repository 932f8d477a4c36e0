"""Output shapes by formula, where running the operator on the meta device would be slower."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from irtool.ir.fx_targets import Spec
from irtool.ir.graph import Value


def meta_like(shape: tuple[int, ...], operands: Mapping[str, Value]) -> torch.Tensor:
    """A meta tensor of `shape` with the element type of the first operand."""
    return torch.empty(shape, dtype=next(iter(operands.values())).dtype, device="meta")


def infer_shape(spec: Spec | None, operands: Mapping[str, Value], attrs: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The output shape where a formula is at hand; None where the operator must be run."""
    rule = SHAPES.get(spec.shape) if spec is not None else None
    try:
        return rule(operands, attrs) if rule is not None and operands else None
    except RuntimeError:  # shapes that do not fit: the operator itself will say so, with its place
        return None


def _same(operands: Mapping[str, Value], attrs: Mapping[str, Any]) -> tuple[int, ...]:
    return next(iter(operands.values())).sizes


def _same_value(operands: Mapping[str, Value], attrs: Mapping[str, Any]) -> tuple[int, ...]:
    return (*operands["input"].sizes[:-1], operands["value"].sizes[-1]) if "value" in operands else _same(operands, attrs)


def _broadcast(operands: Mapping[str, Value], attrs: Mapping[str, Any]) -> tuple[int, ...] | None:
    shapes = [value.sizes for value in operands.values()]
    if len({value.dtype for value in operands.values()}) > 1:
        return None
    return tuple(torch.broadcast_shapes(*shapes)) if any(shape != shapes[0] for shape in shapes) else shapes[0]


def _linear(operands: Mapping[str, Value], attrs: Mapping[str, Any]) -> tuple[int, ...] | None:
    x, weight = operands["input"].sizes, operands.get("weight")
    if weight is None or x[-1] != weight.sizes[-1]:
        return None
    return (*x[:-1], *weight.sizes[:-1])


def _conv(operands: Mapping[str, Value], attrs: Mapping[str, Any]) -> tuple[int, ...] | None:
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


def _concat(operands: Mapping[str, Value], attrs: Mapping[str, Any]) -> tuple[int, ...] | None:
    shapes, dim = [value.sizes for value in operands.values()], attrs.get("dim", 0)
    if not isinstance(dim, int) or len({len(shape) for shape in shapes}) > 1 or len({value.dtype for value in operands.values()}) > 1:
        return None
    axis = dim % len(shapes[0])
    return tuple(sum(shape[d] for shape in shapes) if d == axis else size for d, size in enumerate(shapes[0]))


def _adaptive(operands: Mapping[str, Value], attrs: Mapping[str, Any]) -> tuple[int, ...] | None:
    x, size = operands["input"].sizes, attrs.get("output_size")
    return (*x[: len(x) - len(size)], *size) if isinstance(size, tuple) and all(isinstance(s, int) for s in size) else None


SHAPES: dict[str, Callable[[Mapping[str, Value], Mapping[str, Any]], tuple[int, ...] | None]] = {
    "same": _same, "same_value": _same_value, "broadcast": _broadcast, "linear": _linear, "conv": _conv, "concat": _concat, "adaptive": _adaptive,
}  # fmt: skip
