"""Operators that scale and shift each channel by stored numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from irtool.ir.graph import Graph, Node
from irtool.ops.batch_norm import not_fixed, scale_and_shift

_PROBES = {"Mul": torch.ones, "Div": torch.ones, "Add": torch.zeros, "Sub": torch.zeros}
"""Inputs on which an operator shows its constant: a scale where that is multiplied, a shift where it is added."""
_ORDERED = frozenset({"Div", "Sub"})


def channel_affine(graph: Graph, node: Node) -> tuple[Tensor, Tensor] | None:
    """Read a node as y = scale * x + shift with a number for each channel of axis 1, float64 (channels,) each.

    A fixed batch norm is that, and so is a product, sum, difference or quotient with a constant that varies along axis 1 alone. None
    for anything else, a difference from a constant and a quotient of one included.
    """
    flowing = [value for value in node.inputs if not value.is_param]
    if len(flowing) != 1 or len(node.outputs) != 1 or node.output.shape != flowing[0].shape or not graph.is_constant(node, set(flowing)):
        return None
    if node.op == "BatchNormalization":
        return scale_and_shift(node) if not_fixed(node) is None else None
    probe = _PROBES.get(node.op)
    if probe is None or (node.op in _ORDERED and node.get("input") is not flowing[0]):
        return None
    sizes = (1, flowing[0].sizes[1], *(1,) * (len(flowing[0].sizes) - 2))
    (made,) = graph.evaluate(node, {flowing[0]: probe(sizes, dtype=torch.float64)})
    if tuple(made.shape) != sizes:
        return None  # the constant varies along another axis, too
    row = made.double().reshape(-1)
    return (row, torch.zeros_like(row)) if probe is torch.ones else (torch.ones_like(row), row)
