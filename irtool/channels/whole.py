"""Whole groups of a grouped convolution: the channels that a group reads and makes as one, so that each group that stays keeps its width.

The other kind of balance removes equally many channels from every group, which keeps the number of groups.
"""

from __future__ import annotations

from collections.abc import Collection

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from irtool.channels.labels import Labels

Ints = NDArray[np.int64]


def group_tables(labels: Labels) -> dict[str, tuple[Ints, Ints]]:
    """For each grouped convolution that reads and makes channels the labels that arrive and those that it makes, both of shape
    (groups, channels of a group), by the node's name. Where a weight is computed no group can go alone."""
    found: dict[str, list[Ints]] = {}
    for node, table in labels.balances:
        weight = node.get("weight")
        if node.op in ("Conv", "ConvTranspose") and weight is not None and weight.is_param:
            found.setdefault(node.name, []).append(table.numpy())
    return {name: (tables[0], tables[1]) for name, tables in found.items() if len(tables) == 2 and min(map(np.min, tables)) >= 0}


def tied(labels: Labels, names: Collection[str]) -> list[tuple[Ints, Ints]]:
    """Pairs of labels that go together if whole groups of these convolutions do."""
    pairs = []
    for name, tables in group_tables(labels).items():
        if name in names:
            rows = np.concatenate(tables, axis=1)
            rest = rows[:, 1:]
            pairs.append((np.broadcast_to(rows[:, :1], rest.shape).reshape(-1), rest.reshape(-1)))
    return pairs


def families(labels: Labels, group: Ints) -> list[dict[str, tuple[int, int]]]:
    """The grouped convolutions that whole groups can go from: those that share channels together, each with the widths of its groups.

    Left out are those whose channels lie in another balance too: a shuffle or a head interleaves them.

    Args:
        labels: the first walk.
        group: the group of each label, shape (labels,).
    """
    tables = group_tables(labels)
    beside = [table.numpy() for node, table in labels.balances if node.name not in tables]
    beside += [table.numpy() for _, table in labels.boxes]
    taken = np.concatenate([table[table >= 0].reshape(-1) for table in beside] or [np.zeros(0, np.int64)])
    elsewhere = set(group[taken].tolist())
    links: nx.Graph = nx.Graph()
    for name, (arriving, made) in tables.items():
        nx.add_star(links, [name, *np.unique(group[np.concatenate([arriving.reshape(-1), made.reshape(-1)])]).tolist()])
    found = []
    for component in nx.connected_components(links):
        members = [name for name in tables if name in component]
        if not elsewhere & component:
            found.append({name: (tables[name][0].shape[1], tables[name][1].shape[1]) for name in members})
    return found
