"""Rule for slices that go backwards: MNN 3.6 writes beside its memory there when sizes change."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import NodeProto, helper

from irtool.engines.mnn.rewriting.work import Work


def sliced(work: Work, node: NodeProto) -> list[NodeProto] | None:
    """Write a slice with a negative step (a flip) as gathers: of positions that are listed, or computed where the size is free.

    Only where the bounds are constants; others are left, and found out when the file is run.
    """
    bounds = [work.constants.get(name) for name in node.input[1:] if name]
    if len(bounds) < 4 or min(bounds[3] or [1]) >= 0 or any(numbers is None for numbers in bounds):
        return None
    starts, ends, axes, steps = (numbers or [] for numbers in bounds)
    made: list[NodeProto] = []
    before, rank = node.input[0], len(work.sizes.get(node.input[0], ()))
    for number, (start, end, axis, step) in enumerate(zip(starts, ends, axes, steps, strict=True)):
        if axis < 0 and not rank:
            return None
        place = axis % rank if rank else axis
        size = work.sizes[node.input[0]][place] if rank else None
        if size is None:
            index = _computed(work, node, before, (start, end, place, step), made)
        else:
            index = work.constant(node, f"positions_{place}", list(positions(start, end, step, size)))
        name = node.output[0] if number == len(axes) - 1 else work.inner(node, f"axis_{place}")
        made.append(helper.make_node("Gather", [before, index], [name], name, axis=place))
        before = name
    return made


def positions(start: int, end: int, step: int, size: int) -> range:
    """Return the bounds of ONNX's Slice within an axis: those below zero count from its end, those outside are moved to its border."""
    low, high = (-1, size - 1) if step < 0 else (0, size)
    start, end = (bound + size if bound < 0 else bound for bound in (start, end))
    return range(min(max(start, 0), high), min(max(end, low), high), step)


def _computed(work: Work, node: NodeProto, source: str, bounds: tuple[int, int, int, int], made: list[NodeProto]) -> str:
    """`positions` as operators, for an axis whose size only a run tells."""
    start, end, axis, step = bounds
    number = 0

    def op(kind: str, *inputs: str | int, **attributes: Any) -> str:
        nonlocal number
        number += 1
        names = [name if isinstance(name, str) else work.held(node, "number", np.array(name, np.int64)) for name in inputs]
        made.append(helper.make_node(kind, names, [name := work.inner(node, f"bound_{axis}_{number}")], name, **attributes))
        return name

    size = op("Gather", op("Shape", source), axis, axis=0)
    high = op("Sub", size, 1) if step < 0 else size

    def bound(value: int, low: int) -> str | int:
        """A bound inside of the axis; those far outside of it are its border, whatever its size."""
        if value >= _FAR:
            return high
        if value <= -_FAR:
            return low
        inside = op("Add", size, value) if value < 0 else value
        lowest = op("Max", inside, low) if isinstance(inside, str) else max(inside, low)
        return op("Min", high, lowest)

    return op("Range", bound(start, 0), bound(end, -1 if step < 0 else 0), step)


_FAR = 2**31 - 1
"""Bounds as far away as this stand for no bound."""
