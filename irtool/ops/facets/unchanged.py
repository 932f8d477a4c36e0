"""Whether a node gives what it reads, as its attributes and sizes say."""

from __future__ import annotations

from irtool.ir.graph import Node


def never(node: Node) -> bool:
    """An operator of which this is not known."""
    return False


def is_plain(node: Node) -> bool:
    """Identity itself: not clone and contiguous, which matter to what works in place or by strides, nor detach, which stops gradients."""
    return node.callee == "Identity"


def moves_nothing(node: Node) -> bool:
    """A transpose that leaves every axis where it is."""
    order = node.attrs.get("perm")
    return order is not None and list(order) == sorted(order)


def keeps_type(node: Node) -> bool:
    """A cast to the type that the value has."""
    return node.callee == "Cast" and node.input.dtype is not None and node.input.dtype == node.output.dtype


def one_part(node: Node) -> bool:
    """A concatenation of one value."""
    return len(node.inputs) == 1 and node.input.sizes == node.output.sizes


def pads_nothing(node: Node) -> bool:
    """Padding by nothing."""
    return not any(node.attrs["pads"])


def is_full(node: Node) -> bool:
    """A slice from the first entry to the end of every axis, whatever its size."""
    return node.attrs.get("axes") == ()


def is_unbounded(node: Node) -> bool:
    """A clip without bounds, neither numbers nor tensors."""
    return not node.attrs and len(node.inputs) == 1
