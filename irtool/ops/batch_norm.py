"""Batch norms in numbers, and layers' weights seen from their inputs and outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from irtool.ir.graph import Node


def not_fixed(node: Node) -> str | None:
    """Return the reason why a batch norm in eval mode is no scale and shift by stored numbers; None if it is."""
    if node.get("running_mean") is None or node.get("running_var") is None:
        return "it keeps no running statistics"
    if node.attrs.get("training_mode"):
        return "it normalises by each batch's own statistics in eval mode too"
    return computed_values(node)


def computed_values(node: Node) -> str | None:
    """Name the values of a batch norm that the program computes, as a reason; None if all that it has are stored."""
    computed = [role for role in node.operands if role != "input" and not node.operands[role].is_param]
    return f"its {' and '.join(computed)} {'are' if len(computed) > 1 else 'is'} computed" if computed else None


def scale_and_shift(node: Node, mean: Tensor | None = None, var: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A batch norm that is fixed (`not_fixed`) as y = scale * x + shift, float64, shapes (channels,).

    Args:
        node: the batch norm.
        mean, var: statistics in the place of its own.
    """
    stored: dict[str, Tensor] = {}
    for role, value in node.operands.items():
        if role != "input":
            assert value.data is not None, f"{node.location}: {role} is computed"
            stored[role] = value.data.double()
    mean, var = stored["running_mean"] if mean is None else mean, stored["running_var"] if var is None else var
    scale = (var + node.attrs["epsilon"]).rsqrt()
    if "weight" in stored:
        scale = scale * stored["weight"]
    shift = -mean * scale
    return scale, shift + stored["bias"] if "bias" in stored else shift


def grouped_inputs(weight: Tensor, groups: int) -> Tensor:
    """A convolution's weight (O, I / groups, ...) as (groups, O / groups, I / groups, taps): a view where it can be one."""
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def pads_nothing(node: Node) -> bool:
    """Whether a convolution's result never depends on padding: it has none at the beginning, and no window reaches the end's."""
    kernel = node.operands["weight"].sizes[2:]
    if any(node.attrs["pads"][: len(kernel)]):
        return False
    given, result = node.input.sizes[-len(kernel) :], node.output.sizes[-len(kernel) :]
    strides, dilations = node.attrs["strides"], node.attrs["dilations"]
    wanted = [(size - d * (k - 1) - 1) // s + 1 for size, k, s, d in zip(given, kernel, strides, dilations, strict=True)]
    return list(result) == wanted


def float_param(node: Node, role: str) -> Tensor | None:
    """A float parameter in a role; None if there is none, or if it is computed or quantised."""
    value = node.get(role)
    if value is None or value.data is None or not value.data.is_floating_point():
        return None
    return value.data.to(torch.float64)
