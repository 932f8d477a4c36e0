"""Operators that write into their first input, as a rule sees them."""

from __future__ import annotations

from irtool.hosts.torch.operators import names_a_write
from irtool.hosts.torch.tracing.proxies import AUGMENTED
from irtool.ir.graph import Node, Value
from irtool.ops.opaque import short_name

_VIEWS = frozenset({"Slice", "Split", "Reshape", "Transpose", "Expand", "Identity"})
_AUGMENTED = frozenset(function.__name__ for function in AUGMENTED)


def target(node: Node) -> Value | None:
    """What a node writes into: `x` of `x.add_(y)`, `x += y` and an activation in place, or `out`; None if it writes nothing."""
    name = short_name(node.callee)
    if "out" in node.operands:
        return node.operands["out"]
    return node.input if names_a_write(name) or name in _AUGMENTED or node.attrs.get("inplace") else None


def written(value: Value) -> bool:
    """Whether something writes into a value, or into a view of it."""
    return any(target(node) is value for node in value.uses) or written_through(value)


def written_through(value: Value) -> bool:
    """Whether something writes into a view of a value, so that the value changes without an operator that says so."""
    return any(node.input is value and node.op in _VIEWS and any(map(written, node.outputs)) for node in value.uses)
