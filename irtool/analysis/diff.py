"""What changed between two graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from math import isfinite, prod
from typing import Any

import torch
from torch import Tensor

from irtool.analysis.cost import Cost, cost, held_by
from irtool.analysis.node_matching import data_inputs, match_nodes, plain
from irtool.analysis.replacements import find_replacements
from irtool.ir.graph import Graph, Node


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


@dataclass(frozen=True, slots=True)
class Diff:
    """The differences. Names are for people: a node that was only renamed is listed in `renamed` and is no difference.

    Attributes:
        added, removed: nodes without a partner.
        replaced: nodes whose place others took.
        attributes: attributes that differ.
        wiring: operands that come from another node than the partner's (nodes without a partner in between are followed through).
        channels: channel counts that differ.
        shapes: shapes and types that differ, of parameters, of inputs and of outputs; a bias that came or went.
        parameters: numbers that differ.
        renamed: (before, after) names of partners.
        before, after: what the two graphs cost.
    """

    added: tuple[NodeRef, ...]
    removed: tuple[NodeRef, ...]
    replaced: tuple[Replacement, ...]
    attributes: tuple[Change, ...]
    wiring: tuple[Change, ...]
    channels: tuple[ChannelChange, ...]
    shapes: tuple[Change, ...]
    parameters: tuple[ParameterDelta, ...]
    renamed: tuple[tuple[str, str], ...]
    before: Cost
    after: Cost

    @property
    def same(self) -> bool:
        """Whether both graphs compute the same by the same nodes and numbers."""
        return not any((self.added, self.removed, self.replaced, self.attributes, self.wiring, self.channels, self.shapes, self.parameters))

    def text(self, color: bool = False) -> str:
        """A line a difference (`-` removed, `+` added, `~` changed) and the totals.

        Args:
            color: with ANSI colours, for a terminal.
        """
        lines = list(self._lines()) or [("", "no difference")]
        body = [f"{_COLORS[mark]}{mark} {line}{_RESET}" if color and mark else f"{mark} {line}".strip() for mark, line in lines]
        return "\n".join([*body, *self._totals()])

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON data."""
        names = ("added", "removed", "replaced", "attributes", "wiring", "channels", "shapes", "parameters")
        found: dict[str, Any] = {"same": self.same, **{name: [asdict(item) for item in getattr(self, name)] for name in names}}
        found["renamed"] = [list(pair) for pair in self.renamed]
        found["totals"] = {name: [getattr(self.before, name), getattr(self.after, name)] for name in _TOTALS}
        return found

    def _lines(self) -> Iterator[tuple[str, str]]:
        yield from (("-", f"{node} {_shape(node.shape)}") for node in self.removed)
        yield from (("+", f"{node} {_shape(node.shape)}") for node in self.added)
        yield from (("~", f"{' + '.join(map(str, one.before))} -> {' + '.join(map(str, one.after))}") for one in self.replaced)
        yield from (("~", f"{one.node}: {one.what} {one.before} -> {one.after}") for one in self.attributes)
        yield from (("~", f"{one.node}: {one.what} from {one.before} -> from {one.after}") for one in self.wiring)
        yield from (("~", f"{one.node}: channels {one}") for one in self.channels)
        told = {channel.node for channel in self.channels}
        yield from (("~", f"{one.node}: {one.what} {one.before} -> {one.after}") for one in self.shapes if one.node not in told)
        for delta in self.parameters:
            other = "" if delta.other == delta.name else f" ({delta.other})"
            yield "~", f"{delta.name}{other}: differs by norm {delta.norm:.3g} (relative {delta.relative:.2e}), at most {delta.max_abs:.3g}"

    def _totals(self) -> Iterator[str]:
        for name, label in _TOTALS.items():
            a, b = getattr(self.before, name), getattr(self.after, name)
            share = f" ({(b - a) / a:+.1%})" if a and a != b else ""
            yield f"{label}: {a:,}{f' -> {b:,}' if a != b else ''}{share}"


_TOTALS: Mapping[str, str] = {"params": "parameters", "buffers": "buffer entries", "macs": "MACs", "weight_bytes": "bytes of weights"}
_COLORS: Mapping[str, str] = {"-": "\x1b[31m", "+": "\x1b[32m", "~": "\x1b[33m"}
_RESET = "\x1b[0m"


def diff(a: Graph, b: Graph) -> Diff:
    """Compare two graphs by structure, channels and numbers; nothing is run.

    Nodes are matched as `irtool.analysis.node_matching` says: by what they do, hold and neighbour, not by name alone.
    """
    pairs = match_nodes(a, b)
    found = find_replacements(a, b, pairs)
    changes = _PairDiff(a, b, pairs)
    for x, y in pairs.items():
        changes.compare(x, y, numbers=x not in found.rewritten)
    return Diff(
        added=tuple(map(_ref, found.added)), removed=tuple(map(_ref, found.removed)),
        replaced=tuple(Replacement(tuple(map(_ref, before)), tuple(map(_ref, after))) for before, after in found.replaced),
        attributes=tuple(changes.attributes), wiring=tuple(changes.wiring), channels=tuple(changes.channels), shapes=tuple(changes.shapes),
        parameters=tuple(changes.parameters), renamed=tuple((x.name, y.name) for x, y in pairs.items() if x.name != y.name),
        before=cost(a), after=cost(b),
    )  # fmt: skip


class _PairDiff:
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
        channels = _channels(x), _channels(y)
        if channels[0] is not None and channels[1] is not None and channels[0] != channels[1]:
            self.channels.append(ChannelChange(_ref(x), (channels[0][0], channels[1][0]), (channels[0][1], channels[1][1])))
        if x.op in ("Input", "Output"):
            ends = (x.outputs, y.outputs) if x.op == "Input" else (x.inputs, y.inputs)
            for index in range(max(map(len, ends))):
                before, after = (_typed(side[index].shape, side[index].dtype) if index < len(side) else None for side in ends)
                self._shape(x, f"{x.op.lower()} {index}", before, after)
        if numbers:
            self._parameters(x, y)

    def _attributes(self, x: Node, y: Node) -> None:
        for name in sorted(x.attrs.keys() | y.attrs.keys()):
            before, after = (plain(node.attrs.get(name), name) for node in (x, y))
            if str(before) != str(after):  # as text, so that NaN agrees with NaN
                self.attributes.append(Change(_ref(x), name, before, after))

    def _wiring(self, x: Node, y: Node) -> None:
        before, after = data_inputs(x), data_inputs(y)
        if len(before) != len(after):
            self.wiring.append(Change(_ref(x), "operands", f"{len(before)} nodes", f"{len(after)} nodes"))
            return
        ends = [
            (_resolve(p, index, self.pairs), _resolve(q, other, self._partners))
            for (_, p, index), (_, q, other) in zip(before, after, strict=True)
        ]
        known = [(p, q) for p, q in ends if p is not None and q is not None]
        if x.op in _COMMUTATIVE and len(known) == len(ends) and {(self.pairs[p[0]], p[1]) for p, _ in known} == {q for _, q in known}:
            return
        for (role, *_), (p, q) in zip(before, ends, strict=True):
            if p is not None and q is not None and (self.pairs[p[0]], p[1]) != q:
                self.wiring.append(Change(_ref(x), role, p[0].location, q[0].location))

    def _shape(self, x: Node, what: str, before: str | None, after: str | None) -> None:
        if before != after:
            self.shapes.append(Change(_ref(x), what, before, after))

    def _parameters(self, x: Node, y: Node) -> None:
        before, after = ({role: (name, data) for role, name, data in held_by(graph, node)} for graph, node in ((self.a, x), (self.b, y)))
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


_COMMUTATIVE = frozenset({"Add", "Mul", "Max", "Min"})


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


def _channels(node: Node) -> tuple[int, int] | None:
    """(input, output) channels as the weights say; None for an operator that has none."""
    rule = _CHANNELS.get(node.op)
    return rule(node) if rule is not None else None


def _conv_channels(node: Node) -> tuple[int, int] | None:
    weight, groups = node.get("weight"), int(node.attrs.get("groups") or 1)
    if weight is None:
        return None
    first, second = weight.sizes[0], weight.sizes[1] * groups
    return (first, second) if node.op == "ConvTranspose" or node.attrs.get("transposed") else (second, first)


def _gemm_channels(node: Node) -> tuple[int, int]:
    return node.operands["input"].sizes[-1], node.output.sizes[-1]


def _norm_channels(node: Node) -> tuple[int, int] | None:
    held = [value for value in node.operands.values() if value.data is not None]
    return (prod(held[0].sizes),) * 2 if held else None


def _select_channels(node: Node) -> tuple[int, int]:
    return node.input.sizes[1], node.output.sizes[1]


_CHANNELS: Mapping[str, Callable[[Node], tuple[int, int] | None]] = {
    "Conv": _conv_channels, "ConvTranspose": _conv_channels, "Gemm": _gemm_channels, "ChannelSelect": _select_channels,
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization", "GroupNormalization", "LayerNormalization", "RMSNormalization", "PRelu"), _norm_channels),
}  # fmt: skip


def _ref(node: Node) -> NodeRef:
    return NodeRef(node.name, node.op, node.location, node.output.shape if node.outputs else None)


def _typed(shape: tuple[int, ...] | None, dtype: torch.dtype | None) -> str:
    return f"{str(dtype).removeprefix('torch.')}{_shape(shape)}"


def _shape(shape: tuple[int, ...] | None) -> str:
    return f"[{'x'.join(map(str, shape))}]" if shape is not None else ""
