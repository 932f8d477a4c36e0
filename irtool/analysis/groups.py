"""Channel groups: which channels live and die together, which must stay and why, and which must keep their balance.

One union-find over all meetings (`scipy.sparse.csgraph.connected_components`) gives the groups; cost is linear in the
graph. Conditions that depend on the groups (boxes, balances) are settled by adding meetings and running it again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from irtool.analysis.labels import Labels, Layer, label
from irtool.ir.graph import Graph, Node

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Pin:
    """Why a channel must stay, and where that was found."""

    reason: str
    location: str

    def __str__(self) -> str:
        return f"{self.reason} (at {self.location})"


@dataclass(frozen=True)
class Balance:
    """Groups that must be removed in equal shares.

    Attributes:
        cells: group numbers, sorted into cells by the rows they touch in every table.
        equal: shape (conditions, cells): `equal @ removed == 0` where removed[c] counts the groups taken from cell c.
        rows: shape (rows, cells): channels that a row loses for one group taken from each cell.
        room: shape (rows,): channels a row can lose at most if one is to stay.
    """

    cells: list[Ints]
    equal: Ints
    rows: Ints
    room: Ints


@dataclass
class ChannelGroups:
    """The channel groups of a graph.

    Attributes:
        labels: the walk they come from.
        group: label -> group number, shape (labels,).
        count: number of groups.
        pinned: whether each group must stay, shape (groups,).
        balances: families of groups that must be removed in equal shares.
    """

    labels: Labels
    group: Ints
    count: int
    pinned: NDArray[np.bool_]
    balances: list[Balance] = field(default_factory=list)
    _pins: list[tuple[Ints, Pin]] = field(default_factory=list)

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
        found: Ints = np.unique(self.group[labels[labels >= 0]])
        return found

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
        owned = [self.of(layer.labels.numpy()) for layer in self.layers]
        if not owned:
            return []
        rows = np.repeat(np.arange(len(owned)), [len(found) for found in owned])
        columns = np.concatenate(owned) + len(owned)
        size = len(owned) + self.count
        _, family = connected_components(coo_array((np.ones(rows.size, np.int8), (rows, columns)), shape=(size, size)), directed=False)
        by_family: dict[int, list[Layer]] = defaultdict(list)
        for layer, number in zip(self.layers, family[: len(owned)].tolist(), strict=True):
            by_family[number].append(layer)
        return list(by_family.values())

    def explain(self, name: str) -> str:
        """One line about a layer (module path or node name): its channels, whom it is coupled with, or why it stays.

        Raises:
            KeyError: no layer of that name makes channels.
        """
        for family in self.families:
            for layer in family:
                if name in (layer.node.location, layer.node.name):
                    return self._explain(layer, family)
        known = ", ".join(layer.node.location for layer in self.layers[:8])
        raise KeyError(f"no layer {name!r} makes channels; layers are {known}, ...")

    def _explain(self, layer: Layer, family: Sequence[Layer]) -> str:
        groups = self.of(layer.labels.numpy())
        pinned = [g for g in groups.tolist() if self.pinned[g]]
        others = [other.node.location for other in family if other is not layer]
        text = f"{layer.node.location}: {layer.labels.numel()} channels in {len(groups)} groups"
        if others:
            text += f", pruned together with {', '.join(others)}"
        if pinned:
            text += f"; {len(pinned)} must stay: {self.reasons[pinned[0]]}"
        return text

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


def channel_groups(graph: Graph) -> ChannelGroups:
    """The channel groups of a graph, computed once and kept with it."""
    analyses: dict[str, object] = getattr(graph, "analyses", {})
    found = analyses.get("groups")
    if not isinstance(found, ChannelGroups):
        found = analyses["groups"] = group_channels(label(graph))
    return found


def group_channels(labels: Labels, *, couple: bool = False, pins: Iterable[tuple[Ints, Pin]] = ()) -> ChannelGroups:
    """Group labelled channels.

    Args:
        labels: a finished first walk.
        couple: in balanced families remove the same position from every row, instead of each its own.
        pins: labels that must stay, with reasons, beside those that the walk found.
    """
    return _Grouping(labels, couple, list(pins)).solve()


class _Grouping:
    def __init__(self, labels: Labels, couple: bool, pins: list[tuple[Ints, Pin]]) -> None:
        self.labels, self.couple, self.pins = labels, couple, pins
        self.extra: list[tuple[Ints, Ints]] = []
        self._balanced: list[tuple[Node, Ints]] = []
        firsts, seconds, lone = [], [], []
        for node, a, b in labels.meetings:
            firsts.append(a.numpy())
            seconds.append(b.numpy())
            if bool((a[:1] < 0) != (b[:1] < 0)) or a.numel() > 1:
                lone.append((node, firsts[-1], seconds[-1]))
        self.pins += [(found.numpy(), Pin(reason, node.location)) for node, found, reason in labels.pins]
        self.a = np.concatenate(firsts) if firsts else np.zeros(0, np.int64)
        self.b = np.concatenate(seconds) if seconds else np.zeros(0, np.int64)
        if bool(((self.a < 0) != (self.b < 0)).any()):
            for node, first, second in lone:
                mask = (first < 0) != (second < 0)
                if mask.any():
                    reason = "meets a value whose channels cannot be removed"
                    self.pins.append((np.maximum(first, second)[mask], Pin(reason, node.location)))

    def solve(self) -> ChannelGroups:
        for _ in range(20):
            groups = self._connect()
            if self._settle_boxes(groups):
                continue
            if self._settle_balances(groups):
                continue
            return groups
        raise AssertionError("balance constraints did not settle")  # each round adds meetings or pins, so it ends

    def _connect(self) -> ChannelGroups:
        count = self.labels.count
        a = np.concatenate([self.a, *(x for x, _ in self.extra)])
        b = np.concatenate([self.b, *(y for _, y in self.extra)])
        both = (a >= 0) & (b >= 0)
        matrix = coo_array((np.ones(int(both.sum()), np.int8), (a[both], b[both])), shape=(count, count))
        number, group = connected_components(matrix, directed=False) if count else (0, np.zeros(0, np.int64))
        pinned = np.zeros(number, bool)
        pins = [(np.unique(group[found]).astype(np.int64), pin) for found, pin in self.pins if found.size]
        for groups, _ in pins:
            pinned[groups] = True
        return ChannelGroups(self.labels, group.astype(np.int64), int(number), pinned, [], pins)

    def _settle_boxes(self, groups: ChannelGroups) -> bool:
        """A split axis must shrink along one of its parts. True if meetings were added."""
        added = False
        self._balanced = [(node, table.numpy()) for node, table in self.labels.balances]
        for node, tensor in self.labels.boxes:
            table = tensor.numpy().reshape([size for size in tensor.shape if size > 1])
            ids = np.where(table >= 0, groups.group[table], -1)
            if (ids < 0).all() or groups.pinned[ids[ids >= 0]].all() or any(_constant_across(ids, axis) for axis in range(ids.ndim)):
                continue
            axis = max(range(table.ndim), key=lambda d: (table.shape[d], d))
            if axis == table.ndim - 1 and not self.couple:
                self._balanced.append((node, table.reshape(-1, table.shape[-1])))
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

    def _settle_balances(self, groups: ChannelGroups) -> bool:
        open_tables = []
        order = {node: index for index, node in enumerate(self.labels.graph.nodes)}
        for node, table in sorted(self._balanced, key=lambda item: order[item[0]]):
            ids = np.where(table >= 0, groups.group[table], -1)
            free = ~groups.pinned[ids] & (ids >= 0)
            if free.any() and not (ids == ids[:1]).all():
                open_tables.append((node, table, np.where(free, ids, -1), ids))
        changed = False
        for component in _sharing(open_tables):
            balance = (
                None
                if self.couple
                else _balance(
                    [free for _, _, free, _ in component], [table for _, table, _, _ in component], [ids for *_, ids in component]
                )
            )
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


def _constant_across(ids: Ints, axis: int) -> bool:
    """Whether each index along `axis` holds one group only, so that the box shrinks along this axis by itself."""
    rows = np.moveaxis(ids, axis, 0).reshape(ids.shape[axis], -1)
    return bool((rows == rows[:, :1]).all())


def _sharing(tables: list[tuple]) -> list[list[tuple]]:
    """Tables that share a free group, together."""
    owner: dict[int, int] = {}
    graph: nx.Graph = nx.Graph()
    graph.add_nodes_from(range(len(tables)))
    for index, (_, _, ids, _) in enumerate(tables):
        for group in np.unique(ids[ids >= 0]).tolist():
            graph.add_edge(index, owner.setdefault(group, index))
    return [[tables[i] for i in sorted(component)] for component in nx.connected_components(graph)]


def _balance(tables: list[Ints], labels: list[Ints], groups: list[Ints]) -> Balance | None:
    """The conditions on a family of tables, in the order in which the graph meets them; None if a group sits unevenly.

    Each row of a table must lose equally many channels. Where a table's channels go on to a later table, its rows must
    also send equally many to each row there that they reach: a shuffle interleaves the rows, so a later split falls
    between the same channels only then. `tables` holds free groups (else -1), `groups` all of them.
    """
    touched: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for number, ids in enumerate(tables):
        for row in range(ids.shape[0]):
            found, times = np.unique(ids[row][ids[row] >= 0], return_counts=True)
            for group, many in zip(found.tolist(), times.tolist(), strict=True):
                touched[group].append((number, row, many))
    by_rows: dict[tuple[tuple[int, int, int], ...], list[int]] = defaultdict(list)
    for group, found_at in touched.items():
        by_rows[tuple(found_at)].append(group)
    cells = list(by_rows)
    loss = [np.zeros((ids.shape[0], len(cells)), np.int64) for ids in tables]
    for column, places in enumerate(cells):
        for number, row, many in places:
            loss[number][row, column] += many
    present = _incidence(groups)
    conditions = []
    for number, rows in enumerate(loss):
        conditions.append(rows[1:] - rows[:1])
        for after, there in zip(loss[number + 1 :], present[number + 1 :], strict=True):
            reached = (present[number] @ there.T).toarray() > 0
            conditions.append(_equal_where(rows[reached.any(1)], after.sum(0) > 0))
            conditions += [_equal_where(rows[reached[:, row]], after[row] > 0) for row in range(after.shape[0])]
    equal = np.unique(np.concatenate(conditions), axis=0)
    everything = np.concatenate(loss)
    room = np.concatenate([[int((np.unique(row) >= 0).sum()) - 1 for row in table] for table in labels])
    return Balance([np.array(sorted(found), np.int64) for found in by_rows.values()], equal[(equal != 0).any(1)], everything, room)


def _incidence(tables: list[Ints]) -> list[csr_array]:
    """For each table, which rows have a member of which group, shape (rows, groups)."""
    width = max(int(ids.max()) for ids in tables) + 1
    found = []
    for ids in tables:
        rows, columns = (ids >= 0).nonzero()
        found.append(csr_array((np.ones(len(rows), np.int64), (rows, ids[rows, columns])), shape=(ids.shape[0], width)))
    return found


def _equal_where(rows: Ints, mask: NDArray[np.bool_]) -> Ints:
    """Conditions that all rows lose equally many in the masked cells."""
    masked: Ints = rows * mask
    return masked[1:] - masked[:1]
