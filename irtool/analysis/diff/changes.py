"""Changes between a node and its partner."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from irtool.analysis.cost import held_by
from irtool.analysis.diff.matching import data_inputs, oriented, plain_role
from irtool.ir.attributes import shown
from irtool.ir.graph import Graph, Node, Value
from irtool.ops.properties import COMMUTATIVE, SIZED_BY_ARGUMENT
from irtool.ops.spec import spec_of


@dataclass(frozen=True, slots=True)
class NodeRef:
    """A node in words: name, operator, location, and its first output's shape for the example inputs."""

    name: str
    op: str
    location: str
    shape: tuple[int, ...] | None

    def __str__(self) -> str:
        return f"{self.op} {self.location}"


@dataclass(frozen=True, slots=True)
class Replacement:
    """Nodes whose place others took: a batch norm folded into its convolution, or a stretch between the same neighbours."""

    before: tuple[NodeRef, ...]
    after: tuple[NodeRef, ...]

    def __str__(self) -> str:
        return " -> ".join(" + ".join(map(str, side)) or "nothing" for side in (self.before, self.after))


@dataclass(frozen=True, slots=True)
class Change:
    """Something about a matched node.

    Attributes:
        node: the node as the first graph has it.
        what: the attribute, the parameter's role, or the operand.
        before, after: JSON data; None where it is missing.
    """

    node: NodeRef
    what: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class ChannelChange:
    """Channels (before, after) of a matched node, read off its weights; all groups together."""

    node: NodeRef
    inputs: tuple[int, int]
    outputs: tuple[int, int]

    def __str__(self) -> str:
        if self.inputs == self.outputs and self.node.op.endswith(("Normalization", "PRelu")):
            return f"{self.inputs[0]} -> {self.inputs[1]}"
        sides = (("in", self.inputs), ("out", self.outputs))
        return ", ".join(f"{side} {before} -> {after}" for side, (before, after) in sides if before != after)


@dataclass(frozen=True, slots=True)
class ParameterDelta:
    """A parameter of the same shape whose numbers differ.

    Attributes:
        name: in the first graph.
        other: in the second graph.
        norm: the Euclidean norm of b - a.
        relative: `norm` over the norm of a; infinite if that is zero.
        max_abs: max|b - a|.
    """

    name: str
    other: str
    norm: float
    relative: float
    max_abs: float


class PairDiff:
    """Collects what differs between partners."""

    def __init__(self, a: Graph, b: Graph, pairs: Mapping[Node, Node]) -> None:
        self.a, self.b, self.pairs = a, b, pairs
        self._partners = set(pairs.values())
        self._seen: set[tuple[str, str]] = set()
        self.attributes: list[Change] = []
        self.wiring: list[Change] = []
        self.channels: list[ChannelChange] = []
        self.shapes: list[Change] = []
        self.parameters: list[ParameterDelta] = []

    def compare(self, x: Node, y: Node, numbers: bool) -> None:
        """One pair; without `numbers` the parameters are taken for rewritten."""
        self._attributes(x, y)
        self._wiring(x, y)
        channels = channels_of(x), channels_of(y)
        if channels[0] is not None and channels[1] is not None and channels[0] != channels[1]:
            self.channels.append(ChannelChange(ref(x), (channels[0][0], channels[1][0]), (channels[0][1], channels[1][1])))
        if x.op in ("Input", "Output"):
            ends = (x.outputs, y.outputs) if x.op == "Input" else (x.inputs, y.inputs)
            for index in range(max(map(len, ends))):
                before, after = (_typed(side[index].shape, side[index].dtype) if index < len(side) else None for side in ends)
                self._shape(x, f"{x.op.lower()} {index}", before, after)
        if numbers:
            self._parameters(x, y)

    def _attributes(self, x: Node, y: Node) -> None:
        known = shown(x.attrs), shown(y.attrs)
        if x.op in SIZED_BY_ARGUMENT and _sizes(x.inputs) == _sizes(y.inputs):
            known[0]["size"], known[1]["size"] = _sizes(x.outputs), _sizes(y.outputs)
        for name in sorted(known[0].keys() | known[1].keys()):
            before, after = (side.get(name) for side in known)
            if str(before) != str(after):  # as text, so that NaN agrees with NaN
                self.attributes.append(Change(ref(x), name, before, after))

    def _wiring(self, x: Node, y: Node) -> None:
        before, after = data_inputs(x), data_inputs(y)
        if len(before) != len(after):
            self.wiring.append(Change(ref(x), "operands", f"{len(before)} nodes", f"{len(after)} nodes"))
            return
        ends = [
            (_resolve(p, index, self.pairs), _resolve(q, other, self._partners))
            for (_, p, index), (_, q, other) in zip(before, after, strict=True)
        ]
        known = [(p, q) for p, q in ends if p is not None and q is not None]
        if x.op in COMMUTATIVE and len(known) == len(ends) and {(self.pairs[p[0]], p[1]) for p, _ in known} == {q for _, q in known}:
            return
        for (role, *_), (p, q) in zip(before, ends, strict=True):
            if p is not None and q is not None and (self.pairs[p[0]], p[1]) != q:
                self.wiring.append(Change(ref(x), role, p[0].location, q[0].location))

    def _shape(self, x: Node, what: str, before: str | None, after: str | None) -> None:
        if before != after:
            self.shapes.append(Change(ref(x), what, before, after))

    def _parameters(self, x: Node, y: Node) -> None:
        before, after = (
            {plain_role(role): (name, oriented(node, role, data)) for role, name, data in held_by(graph, node)}
            for graph, node in ((self.a, x), (self.b, y))
        )
        for role in [*before, *(role for role in after if role not in before)]:
            held = [side.get(role) for side in (before, after)]
            typed = [_typed(tuple(one[1].shape), one[1].dtype) if one is not None else None for one in held]
            self._shape(x, role, *typed)
            if held[0] is None or held[1] is None or typed[0] != typed[1]:
                continue
            names = held[0][0], held[1][0]
            if names not in self._seen:
                self._seen.add(names)
                self.parameters += _delta(*names, held[0][1], held[1][1])


def _resolve(node: Node, index: int, matched: Iterable[Node]) -> tuple[Node, int] | None:
    """The matched node that a value comes from, through nodes with one input that have no partner; None if there is no telling."""
    while node not in matched:
        sources = data_inputs(node)
        if len(sources) != 1:
            return None
        _, node, index = sources[0]
    return node, index


def _delta(name: str, other: str, a: Tensor, b: Tensor) -> list[ParameterDelta]:
    if a.device == b.device and torch.equal(a, b):
        return []
    x, y = (t if t.dtype in (torch.float32, torch.float64) else t.double() for t in (a, b.to(a.device)))
    gap = y - x
    norm, size = _norm(gap), _norm(x)
    if not isfinite(norm):  # infinities and NaNs agree with their like
        gap = torch.where((x == y) | (x.isnan() & y.isnan()), 0.0, gap)
        norm = _norm(gap)
    return [ParameterDelta(name, other, norm, norm / size if size else float("inf"), gap.abs().max().item())] if norm != 0 else []


def _norm(tensor: Tensor) -> float:
    return torch.linalg.vector_norm(tensor, dtype=torch.float64).item()


def channels_of(node: Node) -> tuple[int, int] | None:
    """(input, output) channels as the weights say; None for an operator that has none."""
    return spec_of(node.op).channels(node)


def _sizes(values: Iterable[Value]) -> list[list[int]]:
    return [list(value.shape or ()) for value in values if not value.is_param]


def ref(node: Node) -> NodeRef:
    """A node in words."""
    return NodeRef(node.name, node.op, node.location, node.output.shape if node.outputs else None)


def _typed(shape: tuple[int, ...] | None, dtype: torch.dtype | None) -> str:
    return f"{str(dtype).removeprefix('torch.')}{shape_text(shape)}"


def shape_text(shape: tuple[int, ...] | None) -> str:
    """`[1x3x32x32]`."""
    return f"[{'x'.join(map(str, shape))}]" if shape is not None else ""
