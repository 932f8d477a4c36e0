"""Operators that write into their first input, as a rule sees them."""

from __future__ import annotations

from irtool.ir.graph import Node, Value
from irtool.ops.barrier import short_name

_VIEWS = frozenset({"Slice", "Split", "Reshape", "Transpose", "Expand", "Identity"})
_AUGMENTED = frozenset(f"i{name}" for name in "add sub mul matmul truediv floordiv mod pow and or xor lshift rshift".split())


def writes(node: Node) -> bool:
    """Whether a node writes into its first input: `x.add_(y)`, `x += y`, an activation in place."""
    name = short_name(node.callee)
    return (name.endswith("_") and not name.startswith("__")) or name in _AUGMENTED or bool(node.attrs.get("inplace"))


def written(value: Value) -> bool:
    """Whether something writes into a value, or into a view of it."""
    return any(node.input is value and writes(node) for node in value.uses) or written_through(value)


def written_through(value: Value) -> bool:
    """Whether something writes into a view of a value, so that the value changes without an operator that says so."""
    return any(node.input is value and node.op in _VIEWS and any(map(written, node.outputs)) for node in value.uses)
