"""Nodes and values of the graph view."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(eq=False, slots=True)
class Value:
    """A tensor between nodes, or a parameter. Identity is equality; the name is for people.

    Attributes:
        name: unique in its graph; for a parameter its qualified name in the module.
        shape: sizes for the example inputs, or None if the value is not a tensor.
        dtype: the element type, or None if the value is not a tensor.
        producer: the node that computes it; None for parameters.
        data: the tensor held by a parameter, buffer or constant, else None.
        uses: the nodes that read it.
    """

    name: str
    shape: tuple[int, ...] | None
    dtype: torch.dtype | None = None
    producer: Node | None = None
    data: torch.Tensor | None = None
    uses: list[Node] = field(default_factory=list)

    @property
    def is_param(self) -> bool:
        """Whether the value is a parameter, buffer or constant of the model."""
        return self.data is not None

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape of a value that is known to be a tensor."""
        assert self.shape is not None, f"{self.name} is not a tensor"
        return self.shape

    def __repr__(self) -> str:
        return f"%{self.name}{list(self.shape) if self.shape is not None else ''}"


@dataclass(eq=False, slots=True)
class Node:
    """One operator application.

    Attributes:
        name: unique in its graph, stable across `clone`.
        op: the operator in ONNX's vocabulary, `Opaque` where that has no name for it.
        operands: the tensor inputs by role (`input`, `weight`, ...), in order.
        outputs: one value, or several for a node that returns a tuple.
        attrs: the other arguments in one vocabulary for all hosts (`irtool.ir.attributes`); sizes are those seen with the example inputs.
        location: module path or source position, for messages.
        host: the host's own node.
        callee: the host's name for the operator, for messages about `Opaque` nodes.
        writes: the value that the operator writes into (`x` of `x.add_(y)`); None if it writes nothing.
        given: the arguments as the host states them, for the host alone.
    """

    name: str
    op: str
    operands: dict[str, Value]
    outputs: tuple[Value, ...]
    attrs: dict[str, Any]
    location: str
    host: Any
    callee: str
    writes: Value | None = None
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def inputs(self) -> tuple[Value, ...]:
        """All tensor inputs, parameters included, in order."""
        return tuple(self.operands.values())

    @property
    def input(self) -> Value:
        """The first input."""
        return next(iter(self.operands.values()))

    @property
    def output(self) -> Value:
        """The first output."""
        return self.outputs[0]

    def get(self, role: str) -> Value | None:
        """The operand in `role`, or None."""
        return self.operands.get(role)

    def __repr__(self) -> str:
        return f"{self.name} = {self.op}({', '.join(map(repr, self.inputs))})"
