"""The names that operators of the view have in ONNX files, where these differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from irtool.ir.graph import Node

Attributes = Mapping[str, Any]
NOTHING = frozenset({"Dropout", "Identity"})
"""Operators that do nothing in eval mode, which exporters leave out."""
ENDS = frozenset({"Input", "Output"})
"""Nodes of the view that no file has."""


def in_onnx(node: Node) -> tuple[str, Attributes]:
    """Return the operator's name and attributes as an ONNX file has them."""
    return _NAMES.get(node.op, lambda node: (node.op, node.attrs))(node)


def _pool(node: Node) -> tuple[str, Attributes]:
    whole, kind = node.attrs.get("kernel_shape") == "all", {"max": "MaxPool", "average": "AveragePool"}.get(str(node.attrs.get("kind")))
    return (f"Global{kind}", {}) if whole and kind else (kind or "Pool", node.attrs)


def _mean(node: Node) -> tuple[str, Attributes]:
    image = len(node.input.sizes) == 4 and node.attrs.get("kind") == "mean" and tuple(node.attrs.get("axes") or ()) in ((2, 3), (-2, -1))
    return ("GlobalAveragePool" if image else "Reduce", {})


_NAMES: Mapping[str, Callable[[Node], tuple[str, Attributes]]] = {
    "ChannelSelect": lambda node: ("Gather", {}),
    "Pool": _pool,
    "Reduce": _mean,
}
"""ONNX's names and attributes of the view's operators that have others."""
