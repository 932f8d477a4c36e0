"""Operators of the view in ONNX: most are written under their own names, with attributes that newer operator sets take as inputs."""

from __future__ import annotations

from typing import Any

import onnx
import onnx_graphsurgeon as gs

from irtool.errors import GraphError

_ARGUMENTS: dict[str, dict[str, tuple[int, int]]] = {
    "Clip": {"min": (1, 11), "max": (2, 11)},
    "Reshape": {"shape": (1, 5)},
    "Expand": {"shape": (1, 8)},
    "Pad": {"pads": (1, 11), "axes": (3, 18)},
    "Slice": {"starts": (1, 10), "ends": (2, 10), "axes": (3, 10), "steps": (4, 10)},
    "Split": {"split": (1, 13)},
    "Resize": {"sizes": (3, 11)},
    "Tile": {"repeats": (1, 6)},
    "Squeeze": {"axes": (1, 13)},
    "Unsqueeze": {"axes": (1, 13)},
}
"""Attributes that an operator takes as inputs: which one, and since which operator set."""


def argument_slot(op: str, name: str, opset: int) -> int | None:
    """Return the input that holds an attribute in an operator set; None where it is an attribute of the node."""
    slot, since = _ARGUMENTS.get(op, {}).get(name, (None, 0))
    return slot if since <= opset else None


def check_operator(op: str, opset: int) -> None:
    """Refuse what the operator set does not have. Raises GraphError."""
    try:
        onnx.defs.get_schema(op, opset, "")
    except onnx.defs.SchemaError as error:
        remedy = "Convert the file with onnx.version_converter, or insert another operator."
        raise GraphError(f"ONNX has no {op} in operator set {opset}", remedy=remedy) from error


def put_attribute(node: gs.Node, name: str, value: Any, opset: int, constant: Any) -> None:
    """Write an attribute of a node: as an input where the operator set has it there.

    Args:
        node: whose it is.
        name, value: the attribute, in ONNX's form.
        opset: of the program.
        constant: makes a constant of a name and an array.

    Raises:
        GraphError: the operator has no such attribute.
    """
    slot = argument_slot(node.op, name, opset)
    if slot is None:
        if name not in onnx.defs.get_schema(node.op, opset, "").attributes:
            raise GraphError(f"{node.op} has no attribute {name!r} in operator set {opset}", where=node.name, remedy="Leave it out.")
        node.attrs[name] = list(value) if isinstance(value, tuple) else value
        return
    while len(node.inputs) <= slot:
        node.inputs.append(gs.Variable.empty())
    node.inputs[slot] = constant(f"{node.name}.{name}", value)
