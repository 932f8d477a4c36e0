"""Channel groups: which channels live and die together, which must stay and why, and which must keep their balance.

One union-find over all meetings (`scipy.sparse.csgraph.connected_components`) gives the groups; cost is linear in the
graph. Conditions that depend on the groups (boxes, balances) are settled by adding meetings and running it again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from irtool.channels.balance import Balance, balance_of, sharing
from irtool.channels.explained import explain
from irtool.channels.labels import Labels, Layer, label
from irtool.channels.origins import of_the_input
from irtool.channels.positions import mixed_axes
from irtool.channels.whole import tied
from irtool.ir.analyses import once
from irtool.ir.graph import Graph, Node
from irtool.ir.pictures import html_table
from irtool.ops.properties import KEEPS_HEADS, KEEPS_ORDER
from irtool.tensor_defaults import plain_tensors

Ints = NDArray[np.int64]
NOBODY: Ints = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Pin:
    """A reason why a channel must stay, and where it was found."""

    reason: str
    location: str

    def __str__(self) -> str:
        return f"{self.reason} (at {self.location})"


@dataclass
class ChannelGroups:
    """The channel groups of a graph.

    Attributes:
        labels: the walk they come from.
        group: label -> group number, shape (labels,).
        count: number of groups.
        pinned: whether each group must stay, shape (groups,).
        balances: families of groups that must be removed in equal shares.
        whole: names of the grouped convolutions whose groups go as a whole, each one channel group with what it reads and makes.
    """

    labels: Labels
    group: Ints
    count: int
    pinned: NDArray[np.bool_]
    balances: list[Balance] = field(default_factory=list)
    _pins: list[tuple[Ints, Pin]] = field(default_factory=list)
    whole: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        layers = len({layer.node.name for layer in self.layers})
        free = int(self.count - self.pinned.sum())
        return f"<ChannelGroups: {self.count:,} groups of the channels of {layers} layers, {free:,} of them can go>"

    def _repr_html_(self) -> str:
        rows = []
        for layer, own in zip(self.layers, self.owned, strict=True):
            stuck = own[self.pinned[own]]
            reason = self.reasons[int(stuck[0])].reason if stuck.size else ""
            rows.append((layer.node.location, int(own.size), int(own.size - stuck.size), reason))
        return html_table(("layer", "groups", "can go", "why not all"), rows, repr(self)[1:-1])

    @property
    def graph(self) -> Graph:
        """The labelled graph."""
        return self.labels.graph

    @property
    def layers(self) -> list[Layer]:
        """The nodes that make channels."""
        return self.labels.layers

    def of(self, labels: Ints) -> Ints:
        """The distinct groups of some labels."""
        return distinct(self.group[labels[labels >= 0]])

    @cached_property
    def owned(self) -> list[Ints]:
        """The distinct groups of each layer, in the order of `layers`."""
        return [self.of(layer.labels.numpy()) for layer in self.layers]

    @cached_property
    def family(self) -> Ints:
        """The families of layers that share channels: a number for each layer, then one for each group, shape (layers + groups,)."""
        layers = len(self.owned)
        rows = np.repeat(np.arange(layers), [len(found) for found in self.owned])
        columns = np.concatenate(self.owned) + layers if self.owned else rows
        size = layers + self.count
        matrix = coo_array((np.ones(rows.size), (rows.astype(np.int32), columns.astype(np.int32))), shape=(size, size)).tocsr()
        _, family = connected_components(matrix, directed=False)
        return family.astype(np.int64)

    @cached_property
    def members(self) -> tuple[Ints, Ints]:
        """Labels sorted by group, and where each group starts: members of g are order[start[g]:start[g+1]]."""
        order = np.argsort(self.group, kind="stable")
        return order, np.searchsorted(self.group[order], np.arange(self.count + 1))

    @cached_property
    def reasons(self) -> dict[int, Pin]:
        """The first reason for each pinned group."""
        found: dict[int, Pin] = {}
        for groups, pin in self._pins:
            for group in groups.tolist():
                found.setdefault(group, pin)
        return found

    @cached_property
    def families(self) -> list[list[Layer]]:
        """Layers that share channels, together: what `scope="local"` and summaries count as one."""
        by_family: dict[int, list[Layer]] = defaultdict(list)
        for layer, number in zip(self.layers, self.family[: len(self.layers)].tolist(), strict=True):
            by_family[number].append(layer)
        return list(by_family.values())

    def explain(self, name: str) -> str:
        """One line about a layer (module path or node name): its channels, whom it is coupled with, or why it stays.

        For a module it names the layers inside, for a node that makes no channels (a depthwise convolution) whose flow there.

        Raises:
            LayerError: nothing has that name; it is a KeyError, too.
        """
        return explain(self, name)

    def to_networkx(self) -> nx.Graph:
        """The dependency graph: layers and groups of channels as nodes, an edge where a layer makes or reads a group's channels.

        Nodes are `("layer", location)` with `channels`, and `("group", number)` with `size` and `pinned`.
        """
        graph: nx.Graph = nx.Graph()
        for number, family in enumerate(self.families):
            groups = np.unique(np.concatenate([self.of(layer.labels.numpy()) for layer in family]))
            graph.add_node(("group", number), size=len(groups), pinned=bool(self.pinned[groups].all()))
            names = {key[0] for layer in family for key in (layer.key,)}
            for layer in family:
                graph.add_node(("layer", layer.node.location), channels=layer.labels.numel())
                graph.add_edge(("layer", layer.node.location), ("group", number), role="makes")
            wanted = set(groups.tolist())
            for (node, key), (arriving, _) in self.labels.reads.items():
                if key[0] not in names and wanted.intersection(self.of(arriving.numpy()).tolist()):
                    location = self.graph.node(node).location
                    graph.add_edge(("layer", location), ("group", number), role="reads")
        return graph


@once
@plain_tensors()
def channel_groups(graph: Graph) -> ChannelGroups:
    """The channel groups of a graph, computed once and kept with it."""
    return group_channels(label(graph))


def group_channels(
    labels: Labels, *, couple: Ints = NOBODY, strict: Ints = NOBODY, pins: Iterable[tuple[Ints, Pin]] = (),
    together: Iterable[tuple[Ints, Ints]] = (), whole: Collection[str] = ()) -> ChannelGroups:  # fmt: skip
    """Group labelled channels.

    Args:
        labels: a finished first walk.
        couple: labels in whose balanced families the same position goes from every row, instead of each its own.
        strict: labels in whose balanced families the rows of every table send equally many to each row that they reach, not those of
            split axes alone.
        pins: labels that must stay, with reasons, beside those that the walk found.
        together: pairs of labels that go together, beside those that met.
        whole: names of grouped convolutions whose groups go as a whole, in place of equally many channels of each.
    """
    return _Grouping(labels, couple, strict, list(pins), list(together), frozenset(whole)).solve()


def distinct(numbers: Ints) -> Ints:
    """The distinct entries, sorted: `np.unique`, without the overhead that shows on short arrays."""
    if numbers.size > 1 and not bool((numbers[1:] > numbers[:-1]).all()):
        numbers = np.sort(numbers)
        numbers = numbers[np.append(True, numbers[1:] != numbers[:-1])]
    return numbers


class _Grouping:
    def __init__(self, labels: Labels, couple: Ints, strict: Ints, pins: list[tuple[Ints, Pin]], together: list[tuple[Ints, Ints]],
                 whole: frozenset[str]) -> None:  # fmt: skip
        self.labels, self.couple, self.pins, self.extra, self.whole = labels, couple, pins, [*together, *tied(labels, whole)], whole
        self._strict = strict
        self._balanced: list[tuple[Node, Ints, bool]] = []
        """Tables whose rows lose equally many, and whether what stays of each may come in another order."""
        firsts, seconds = [a.numpy() for _, a, _ in labels.meetings], [b.numpy() for _, _, b in labels.meetings]
        self.pins += [(found.numpy(), Pin(reason, node.location)) for node, found, reason in labels.pins]
        self.a = np.concatenate(firsts) if firsts else np.zeros(0, np.int64)
        self.b = np.concatenate(seconds) if seconds else np.zeros(0, np.int64)
        if bool(((self.a < 0) != (self.b < 0)).any()):
            own = of_the_input(labels)
            for (node, *_), first, second in zip(labels.meetings, firsts, seconds, strict=True):
                mask = (first < 0) != (second < 0)
                if mask.any():
                    reason = "meets a value whose channels cannot be removed" + (
                        ": they are the input's own" if own & {*node.inputs} else ""
                    )
                    self.pins.append((np.maximum(first, second)[mask], Pin(reason, node.location)))

    def solve(self) -> ChannelGroups:
        for _ in range(20):
            groups = self._connect()
            if self._resolve_boxes(groups):
                continue
            if self._resolve_balances(groups):
                continue
            return groups
        raise AssertionError("balance constraints did not settle")  # each round adds meetings or pins, so it ends

    def _connect(self) -> ChannelGroups:
        count = self.labels.count
        a = np.concatenate([self.a, *(x for x, _ in self.extra)])
        b = np.concatenate([self.b, *(y for _, y in self.extra)])
        both = (a >= 0) & (b >= 0)
        pairs = (a[both].astype(np.int32), b[both].astype(np.int32))
        matrix = coo_array((np.ones(pairs[0].size), pairs), shape=(count, count)).tocsr()  # the form that scipy need not convert
        number, group = connected_components(matrix, directed=False) if count else (0, np.zeros(0, np.int64))
        pinned = np.zeros(number, bool)
        group = group.astype(np.int64)
        pins = [(distinct(group[found]), pin) for found, pin in self.pins if found.size]
        for groups, _ in pins:
            pinned[groups] = True
        return ChannelGroups(self.labels, group, int(number), pinned, [], pins, self.whole)

    def _resolve_boxes(self, groups: ChannelGroups) -> bool:
        """A split axis must shrink along one of its parts. True if meetings were added."""
        added = False
        self._balanced = [
            (node, table.numpy(), node.op not in KEEPS_ORDER) for node, table in self.labels.balances if node.name not in self.whole
        ]
        heads = {row.tobytes() for node, table, _ in self._balanced if node.op in KEEPS_HEADS for row in table}
        for node, tensor in self.labels.boxes:
            table = tensor.numpy().reshape([size for size in tensor.shape if size > 1])
            ids = np.where(table >= 0, groups.group[table], -1)
            mixed = mixed_axes(table)
            own = [axis for axis in range(table.ndim) if axis not in mixed]  # the others are as long as the batch, or as the image
            if (ids < 0).all() or groups.pinned[ids[ids >= 0]].all() or any(_constant_across(ids, axis) for axis in own):
                continue
            if not own:
                added |= self._unify_rows(groups, table.reshape(-1, 1))
                continue
            axis = max(own, key=lambda d: (_within(table, d, heads), table.shape[d], d))
            if axis == table.ndim - 1:
                self._balanced.append((node, table.reshape(-1, table.shape[-1]), True))
                continue
            rows = np.moveaxis(table, axis, 0).reshape(table.shape[axis], -1)
            added |= self._unify_rows(groups, rows.T)
        return added

    def _unify_rows(self, groups: ChannelGroups, table: Ints) -> bool:
        """Unify each column of the table. True if that was news."""
        first, rest = np.broadcast_to(table[:1], (table.shape[0] - 1, table.shape[1])).reshape(-1), table[1:].reshape(-1)
        news = (first >= 0) & (rest >= 0) & (groups.group[first] != groups.group[rest])
        if news.any():
            self.extra.append((first[news], rest[news]))
        return bool(news.any())

    def _resolve_balances(self, groups: ChannelGroups) -> bool:
        open_tables = []
        order = {node: index for index, node in enumerate(self.labels.graph.nodes)}
        for node, table, relaid in sorted(self._balanced, key=lambda item: order[item[0]]):
            ids = np.where(table >= 0, groups.group[table], -1)
            free = ~groups.pinned[ids] & (ids >= 0)
            if free.any() and not (ids == ids[:1]).all():
                open_tables.append((node, table, np.where(free, ids, -1), ids, relaid))
        changed = False
        for component in sharing(open_tables):
            _, tables, free_ids, all_ids, flags = zip(*component, strict=True)
            members = np.concatenate([ids.reshape(-1) for ids in all_ids])
            strict = bool(np.isin(groups.group[self._strict], members).any())
            couple = bool(np.isin(groups.group[self.couple], members).any())
            balance = None if couple else balance_of(list(free_ids), list(tables), list(all_ids), [strict or flag for flag in flags])
            if balance is not None:
                groups.balances.append(balance)
                continue
            if sum(self._unify_rows(groups, table) for _, table, *_ in component):
                changed = True
                continue
            location = component[0][0].location
            self.pins += [(table[table >= 0], Pin("its groups cannot lose equally many channels", location)) for _, table, *_ in component]
            changed = True
        if changed:
            groups.balances.clear()
        return changed


def _within(table: Ints, axis: int, heads: set[bytes]) -> bool:
    """Whether an axis lies within heads that must stay, so that a box shrinks along it."""
    return any(row.tobytes() in heads for row in np.moveaxis(table, axis, -1).reshape(-1, table.shape[axis]))


def _constant_across(ids: Ints, axis: int) -> bool:
    """Whether each index along `axis` holds one group only, so that the box shrinks along this axis by itself."""
    rows = np.moveaxis(ids, axis, 0).reshape(ids.shape[axis], -1)
    return bool((rows == rows[:, :1]).all())
