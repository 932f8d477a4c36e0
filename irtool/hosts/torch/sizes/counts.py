"""Sizes that a program reads off a tensor, and what it makes of them: which axis of which tensor a number counts."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx


@dataclass(frozen=True)
class Count:
    """A number that is a multiple of an axis's size.

    Attributes:
        tensor: the host node of the tensor.
        axis: which axis, as the program says it.
        times: how many times its size.
    """

    tensor: fx.Node
    axis: int
    times: int = 1


def count_of(arg: Any) -> Count | None:
    """Find the axis that a number counts, if it is read off a tensor's sizes, or is a whole multiple of such a number."""
    if not isinstance(arg, fx.Node):
        return None
    if arg.op == "call_method" and arg.target == "size":
        return _counted(arg.args[0], arg.args[1] if len(arg.args) > 1 else arg.kwargs.get("dim"))
    if arg.target is torch.ops.aten.sym_size.int:
        return _counted(arg.args[0], arg.args[1])
    if arg.target is operator.getitem and isinstance(arg.args[0], fx.Node) and _is_shape(arg.args[0]):
        return _counted(arg.args[0].args[0], arg.args[1])
    if arg.target is int:
        return count_of(arg.args[0])
    if arg.target is operator.mul:
        for factor, other in ((arg.args[0], arg.args[1]), (arg.args[1], arg.args[0])):
            found = count_of(factor) if isinstance(other, int) and other > 0 else None
            if found is not None:
                assert isinstance(other, int)
                return Count(found.tensor, found.axis, found.times * other)
    return None


def _is_shape(node: fx.Node) -> bool:
    return bool(node.target is getattr and node.args[1] == "shape") or (
        node.op == "call_method" and node.target == "size" and len(node.args) == 1
    )


def _counted(tensor: Any, axis: Any) -> Count | None:
    return Count(tensor, axis) if isinstance(tensor, fx.Node) and isinstance(axis, int) else None


def counts_of(listed: Sequence[Any], rank: Callable[[fx.Node], int | None]) -> list[Count | None]:
    """Find the axis that each of the sizes that a call lists counts, also where a whole shape is given, or a piece of one, or several joined.

    Args:
        listed: the sizes, as `sizes_of` gives them.
        rank: how many axes the tensor has that a host node computes; None if it computes no tensor.
    """
    if len(listed) == 1 and (whole := _pieces(listed[0], rank)) is not None:
        return whole
    return [count_of(size) for size in listed]


def _pieces(arg: Any, rank: Callable[[fx.Node], int | None]) -> list[Count | None] | None:
    """List what the sizes of a shape as a whole count; None for what is none."""
    if isinstance(arg, tuple | list):
        return [count_of(size) for size in arg]
    if not isinstance(arg, fx.Node):
        return None
    tensor = arg.args[0] if _is_shape(arg) else None
    if isinstance(tensor, fx.Node) and (axes := rank(tensor)) is not None:
        return [Count(tensor, axis) for axis in range(axes)]
    if arg.target is operator.getitem and isinstance(arg.args[1], slice):
        whole = _pieces(arg.args[0], rank)
        plain = all(isinstance(bound, int | None) for bound in (arg.args[1].start, arg.args[1].stop, arg.args[1].step))
        return whole[arg.args[1]] if whole is not None and plain else None
    if arg.target is operator.add:
        parts = [_pieces(part, rank) for part in arg.args]
        return None if any(part is None for part in parts) else [found for part in parts for found in part or ()]
    return None


def sizes_of(node: fx.Node) -> tuple[str | None, int, list[Any]]:
    """The sizes that a call of a factory lists: under which keyword, or from which position on, and the sizes."""
    key = next((name for name in ("size", "shape") if name in node.kwargs), None)
    if key is not None:
        listed: Any = node.kwargs[key]
        return key, 0, list(listed) if isinstance(listed, tuple | list) else []
    name = str(getattr(node.target, "__name__", node.target)).split(".")[0]
    first = 1 if name.startswith("new_") else 0
    if len(node.args) > first and isinstance(node.args[first], tuple | list):
        return None, first, list(node.args[first])  # type: ignore[arg-type]
    if name in ("full", "new_full"):
        return None, first, [node.args[first]]
    plain = [arg for arg in node.args[first:] if isinstance(arg, int | fx.Node)]
    return None, first, plain if len(plain) == len(node.args) - first else []
