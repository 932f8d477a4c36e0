"""Axes of operators that do not list them: pools work along the last one to three, as their names say (`max_pool2d`)."""

from __future__ import annotations

import re
from functools import cache

from irtool.ir.graph import Node


def first_space(node: Node, rank: int) -> int:
    """The first axis in space. The one before it is the channels': axis 1, or 0 where there is no batch."""
    axes = 2 if node.op == "Trilu" else _dimensions(node.callee)
    return rank - axes if axes else min(2, rank)


def implied_axis(rank: int) -> int:
    """The axis of a softmax that names none."""
    return 0 if rank in (0, 1, 3) else 1


@cache
def _dimensions(callee: str) -> int:
    """How many axes the name says; 0 if it says none (ONNX's operators, `interpolate`): all that follow the channels'."""
    found = re.search(r"([123])d", callee)
    return int(found[1]) if found else 0
