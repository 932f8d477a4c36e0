"""The first walk: give every parameter axis fresh labels, run them through the graph, and note what meets what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from irtool.ir.graph import Graph, Node, Value
from irtool.ops.rules.context import Axis, Context, is_floating, none, on_axis, place, says_where
from irtool.ops.spec import rule_for

Key = tuple[str, Axis]
"""A labelled axis: (parameter name or `node:` + node name, axis)."""


def entries(value: Value, axis: Axis) -> int:
    """Count the entries of a parameter's axis, over all groups."""
    return value.sizes[axis] if isinstance(axis, int) else value.sizes[axis[0]] * axis[1]


@dataclass(frozen=True)
class Layer:
    """A node that makes channels, the axis that holds them, and their labels."""

    node: Node
    key: Key
    labels: Tensor


@dataclass
class Walk:
    """The labels of every value and the rules' view of them, as the labelling and the proof share them.

    A subclass says where an axis's labels come from and what happens when two labels meet.
    """

    graph: Graph
    values: dict[Value, Tensor] = field(default_factory=dict)
    more: dict[Value, tuple[Tensor, ...]] = field(default_factory=dict)
    """Further label tensors of values whose entries are products of channels."""
    constants: set[Value] = field(default_factory=set)
    """Values that are computed from parameters alone."""
    along: int | None = None
    _params: dict[Value, Tensor] = field(default_factory=dict)

    def run(self) -> None:
        """Apply each node's rule in topological order."""
        for node in self.graph.nodes:
            rule_for(node.op)(node, cast(Context, self))

    def of(self, value: Value) -> Tensor:
        """Labels of a value; a parameter has them along its only axis longer than 1, or none at first sight."""
        if not value.is_param:
            return self.values[value]
        axes = [axis for axis, size in enumerate(self.original(value).sizes) if size > 1]
        if len(axes) != 1 or not (is_floating(value) or (value.dtype is not None and not says_where(value))):
            self.computed(value)
            return none(len(value.sizes))
        return on_axis(self.param(value, axes[0]), axes[0], len(value.sizes))

    def parts(self, value: Value) -> tuple[Tensor, ...]:
        """All label tensors of a value; a parameter of several axes has one for each."""
        if not value.is_param:
            return (self.values[value], *self.more.get(value, ()))
        rank, axes = len(value.sizes), [axis for axis, size in enumerate(self.original(value).sizes) if size > 1]
        if len(axes) < 2 or not is_floating(value):
            return (self.of(value),)
        return tuple(on_axis(self.param(value, axis), axis, rank) for axis in axes)

    def put_parts(self, value: Value, parts: Sequence[Tensor]) -> None:
        """Set the label tensors of a node's output: the first as its labels, others beside."""
        self.put(value, parts[0])
        if len(parts) > 1:
            self.more[value] = tuple(parts[1:])

    def is_constant(self, value: Value) -> bool:
        """Whether a node's output is computed from parameters and constants alone."""
        return value in self.constants

    def mark_constant(self, value: Value) -> None:
        """Say so."""
        self.constants.add(value)

    def original(self, value: Value) -> Value:
        """The parameter as it was before slicing."""
        return value

    def computed(self, value: Value, reader: Node | None = None, reason: str = "") -> None:
        """A parameter of several axes is read by an operator that does not say how: its entries cannot be followed."""

    def put(self, value: Value, labels: Tensor) -> None:
        """Set the labels of a node's output."""
        assert labels.dim() == len(value.sizes), f"{value.name}: labels of rank {labels.dim()} for {value.sizes}"
        self.values[value] = labels

    def evaluate(self, node: Node, values: Mapping[Value, Tensor]) -> Sequence[Tensor]:
        """Run the node's own operator on labels."""
        return self.graph.evaluate(node, values)

    def param(self, value: Value, axis: Axis) -> Tensor:
        raise NotImplementedError


@dataclass
class Labels(Walk):
    """The first walk's findings. All label arrays are int64 and one-dimensional unless said otherwise.

    Attributes:
        axes: labels of every labelled axis, by key: its own, or those that arrived when it was first read.
        layers: the nodes that make channels, with the labels they make.
        meetings: (node, a, b): a[i] met b[i]; -1 where one side was no channel.
        reads: what arrived at a parameter's axis, and the axis's own labels, by (node name, key).
        pins: (node, labels, reason).
        balances: (node, table): each row of the table must lose equally many.
        boxes: (node, table of the split axes' rank).
        ties: (node, source labels, labels of the copies).
        floors: sets of which at least one must stay.
        inexacts: (node, table, why): the channels of each row are mixed with each other.
        decisions: choices made from sizes, by (node name, key).
    """

    axes: dict[Key, Tensor] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    meetings: list[tuple[Node, Tensor, Tensor]] = field(default_factory=list)
    reads: dict[tuple[str, Key], tuple[Tensor, Tensor]] = field(default_factory=dict)
    pins: list[tuple[Node, Tensor, str]] = field(default_factory=list)
    balances: list[tuple[Node, Tensor]] = field(default_factory=list)
    boxes: list[tuple[Node, Tensor]] = field(default_factory=list)
    ties: list[tuple[Node, Tensor, Tensor]] = field(default_factory=list)
    floors: list[Tensor] = field(default_factory=list)
    inexacts: list[tuple[Node, Tensor, str]] = field(default_factory=list)
    decisions: dict[tuple[str, str], bool] = field(default_factory=dict)
    count: int = 0
    _computed: dict[str, tuple[Node, str]] = field(default_factory=dict)
    _names: dict[tuple[int, int, int], bool] = field(default_factory=dict)
    """By where label vectors lie: whether they are several channels, no two alike. All of these are held by `reads` or `axes`."""

    def run(self) -> None:
        """Walk, then pin what was computed with."""
        super().run()
        for (name, _), found in self.axes.items():
            if name in self._computed:
                reader, reason = self._computed[name]
                self.pin(reader, found, reason)

    def computed(self, value: Value, reader: Node | None = None, reason: str = "") -> None:
        """Every axis of such a parameter must stay, those that other operators read in groups included."""
        self._computed.setdefault(value.name, (reader or value.uses[0], reason or f"other values are computed from {value.name}"))

    def _new(self, key: Key, size: int) -> Tensor:
        made = torch.arange(self.count, self.count + size)
        self.count += size
        self.axes[key] = made
        if size > 1:
            self._names[place(made)] = True
            self.floors.append(made)
        return made

    def param(self, value: Value, axis: Axis) -> Tensor:
        """Fresh labels at first sight; an axis of one entry has none, since it can never be removed."""
        key = (value.name, axis)
        if key not in self.axes:
            size = entries(value, axis)
            self.axes[key] = none(1) if size == 1 else self._new(key, size)
        return self.axes[key]

    def fresh(self, node: Node, count: int) -> Tensor:
        """Labels of channels that the node makes."""
        return self._new((f"node:{node.name}", 0), count)

    def produce(self, node: Node, value: Value, axis: Axis) -> Tensor:
        """The labels of an output axis; the node is listed as a layer that makes them."""
        labels = self.param(value, axis)
        if labels.numel() > 1:
            self.layers.append(Layer(node, (value.name, axis), labels))
        return labels

    def unify(self, node: Node, a: Tensor, b: Tensor) -> None:
        """Note a meeting; where one side is no channel, the other is pinned."""
        self.meetings.append((node, a, b))

    def read(self, node: Node, value: Value, axis: Axis, arriving: Tensor) -> None:
        """`arriving` meets a parameter's axis, entry by entry. At first sight the entries are named after what arrives (ADR 9)."""
        key = (value.name, axis)
        if key not in self.axes and arriving.numel() == entries(value, axis) and self._are_names(arriving):
            own = self.axes[key] = arriving
        else:
            own = self.param(value, axis)
            if own.numel() == 1 and arriving.numel() > 1:
                own = own.expand(arriving.numel())
            self.meetings.append((node, arriving, own))
        self.reads[node.name, key] = (arriving, own)

    def on(self, graph: Graph) -> Labels:
        """These labels for another graph of the same program: a copy in which some parameters have other values."""
        pairs = list(zip(self.graph.nodes, graph.nodes, strict=True))
        nodes = dict(pairs)
        own = [(*node.inputs, *node.outputs) for node, _ in pairs]
        its = [(*node.inputs, *node.outputs) for _, node in pairs]
        values = {a: b for some, others in zip(own, its, strict=True) for a, b in zip(some, others, strict=True)}

        def first(entries: Iterable[tuple[Node, *tuple[Any, ...]]]) -> list[Any]:
            return [(nodes[node], *rest) for node, *rest in entries]

        return replace(
            self,
            graph=graph,
            values={values[value]: labels for value, labels in self.values.items()},
            more={values[value]: labels for value, labels in self.more.items()},
            constants={values[value] for value in self.constants},
            layers=[Layer(nodes[layer.node], layer.key, layer.labels) for layer in self.layers],
            _computed={name: (nodes[node], reason) for name, (node, reason) in self._computed.items()},
            meetings=first(self.meetings),
            pins=first(self.pins),
            balances=first(self.balances),
            boxes=first(self.boxes),
            ties=first(self.ties),
            inexacts=first(self.inexacts),
        )

    def names(self) -> list[tuple[int, int, int]]:
        """Keys (see `storage_key`) of label vectors that are known to be several channels, no two alike."""
        return [where for where, distinct in self._names.items() if distinct]

    def _are_names(self, labels: Tensor) -> bool:
        """Whether there are several, all of them channels, no two alike. Then at least one must stay, too."""
        known = self._names.get(place(labels))
        if known is None:
            found = labels.numpy()
            known = self._names[place(labels)] = found.size > 1 and bool(found.min() >= 0) and np.unique(found).size == found.size
            if known:
                self.floors.append(labels)
        return known

    def pin(self, node: Node, labels: Tensor, reason: str) -> None:
        """These channels must stay."""
        kept = labels[labels >= 0]
        if kept.numel():
            self.pins.append((node, kept, reason))

    def balance(self, node: Node, table: Tensor) -> None:
        """Each row must lose equally many."""
        if table.shape[0] > 1 and bool((table >= 0).any()):
            self.balances.append((node, table))

    def box(self, node: Node, table: Tensor) -> None:
        """An axis was split: what stays must be a box."""
        self.boxes.append((node, table))

    def tie(self, node: Node, source: Tensor, copies: Tensor) -> None:
        """One-way dependency of a channel selection."""
        self.ties.append((node, source, copies))

    def floor(self, labels: Tensor) -> None:
        """At least one must stay."""
        kept = labels.reshape(-1)
        kept = kept[kept >= 0]
        if kept.numel():
            self.floors.append(kept)

    def inexact(self, node: Node, table: Tensor, why: str) -> None:
        """A step that mixes channels."""
        self.inexacts.append((node, table.reshape(-1, table.shape[-1]), why))

    def decide(self, node: Node, key: str, value: bool) -> bool:
        """Remember a choice for the second walk."""
        self.decisions[node.name, key] = value
        return value


def mixes(table: Tensor, keep: Tensor) -> bool:
    """Whether a row of an inexact step's table loses some of its channels and keeps others."""
    stays = torch.where(table >= 0, keep[table], True)
    return bool((stays.any(1) & ~stays.all(1)).any())


def label(graph: Graph) -> Labels:
    """Run the first walk over a graph."""
    labels = Labels(graph)
    labels.run()
    return labels
