"""What a seeded fault is, where faults are registered, and the patches that several share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from exchanged import exchange
from torch import Tensor

from irtool.ir.graph import Node
from irtool.ops import spec as table
from irtool.ops.rules.context import Context

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Fault:
    """A patch, and the structures on which it must show.

    Attributes:
        apply: installs the fault.
        nets: names of structures.
        residual: as in `irtool.plan`.
    """

    apply: Callable[[Patch], None]
    nets: tuple[str, ...]
    residual: str = "couple"


FAULTS: dict[str, Fault] = {}


def fault(*nets: str, residual: str = "couple") -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    """Register a patch under its function's name."""

    def register(apply: Callable[[Patch], None]) -> Callable[[Patch], None]:
        FAULTS[apply.__name__] = Fault(apply, nets, residual)
        return apply

    return register


def outputs(patch: Patch, op: str, change: Callable[[Tensor, Node], Tensor]) -> None:
    """After the rule of `op` has run, change the labels of every output that has some."""
    rule = table.spec_of(op).labels

    def faulty(node: Node, ctx: Context) -> None:
        rule(node, ctx)
        for output in node.outputs:
            labels = ctx.of(output)
            if labels.numel() > 1:
                ctx.put(output, change(labels, node))

    exchange(patch, op, labels=faulty)


def longest(labels: Tensor) -> int:
    return max(range(labels.dim()), key=lambda axis: labels.shape[axis])


def rolled(labels: Tensor, node: Node) -> Tensor:
    return labels.roll(1, longest(labels))


def mirrored(labels: Tensor, node: Node) -> Tensor:
    return labels.flip(longest(labels))
