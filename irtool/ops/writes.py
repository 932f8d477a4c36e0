"""Values that change after they were made, since an operator writes into them or into a view of them."""

from __future__ import annotations

from irtool.ir.graph import Value

_VIEWS = frozenset({"Slice", "Split", "Reshape", "Transpose", "Expand", "Identity"})


def written(value: Value) -> bool:
    """Whether something writes into a value, or into a view of it."""
    return any(node.writes is value for node in value.uses) or written_through(value)


def written_through(value: Value) -> bool:
    """Whether something writes into a view of a value, so that the value changes without an operator that says so."""
    return any(node.input is value and node.op in _VIEWS and any(map(written, node.outputs)) for node in value.uses)
