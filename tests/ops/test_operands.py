"""No rule overlooks an operand that carries channels: what is not looked at is neither tied nor pinned, and goes wrong in silence."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from exchanged import exchange
from structures import CASES, graph
from torch import Tensor

from irtool.channels.labels import Walk, label
from irtool.ir.graph import Node, Value
from irtool.ops import spec as table
from irtool.ops.rules import contraction
from irtool.ops.rules.context import Context
from irtool.ops.rules.products import _Part

BY_SIZE = frozenset({"Constant"})
"""Operators that read an operand's size and type only (`new_zeros`); what they make is shortened with it."""


def overlooked(name: str, patch: pytest.MonkeyPatch) -> set[str]:
    """Operands with channels that the rule of their reader did not look at, as `operator <- operand`."""
    seen: set[Value] = set()
    found: set[str] = set()

    def watched(kind: type, method: str) -> None:
        plain = getattr(kind, method)

        def look(self: object, value: Value) -> Tensor | tuple[Tensor, ...]:
            seen.add(value)
            return plain(self, value)

        patch.setattr(kind, method, look)

    def judged(rule: Callable[[Node, Context], None]) -> Callable[[Node, Context], None]:
        def run(node: Node, ctx: Context) -> None:
            seen.clear()
            rule(node, ctx)
            values = ctx.values if isinstance(ctx, Walk) else {}
            for value in node.inputs:
                if node.op not in BY_SIZE and value not in seen and value in values and bool((values[value] >= 0).any()):
                    found.add(f"{node.op} <- {value.name}")

        return run

    for kind, method in ((Walk, "of"), (Walk, "parts"), (_Part, "of")):
        watched(kind, method)
    for op, spec in list(table.SPECS.items()):
        exchange(patch, op, labels=judged(spec.labels))
    label(graph(name))
    return found


@pytest.mark.parametrize("name", CASES)
def test_every_operand_with_channels_is_looked_at(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert overlooked(name, monkeypatch) == set()


def test_an_overlooked_operand_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contraction, "pin_value", lambda node, ctx, value, reason: None)
    assert any(text.startswith("Attention <-") for text in overlooked("position_bias", monkeypatch))
