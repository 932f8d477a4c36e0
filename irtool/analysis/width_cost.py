"""Cost as a function of widths: multiply-accumulates, parameters and bytes of a graph as polynomials in the sizes of its label vectors.

An axis that carries channels is as long as its label vector, so after slicing it is as long as the labels that stay. Every count of
`cost` is a sum of products of axis lengths. Written down once, such a polynomial gives the cost of any choice of channels, and
what it saves to remove one more, without slicing anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from irtool.analysis.cost import holdings
from irtool.channels.groups import ChannelGroups
from irtool.ir.graph import Node, Value
from irtool.ops.facets.macs import Product
from irtool.ops.rules.context import varying
from irtool.ops.spec import spec_of

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class WidthCost:
    """Costs as sums of products of widths. A width is the number of labels of a vector that stay.

    Attributes:
        sets: the label vectors, each an int64 array without -1, after a first one that is empty and stands for the constant 1.
        factors: shape (terms, most factors): indices into `sets`; 0 stands for no factor.
        coefficients: by kind (`macs`, `params`, `bytes`, `latency`), float64, shape (terms,).
        constant: by kind, what does not depend on any width.
    """

    sets: list[Ints]
    factors: Ints
    coefficients: dict[str, Floats]
    constant: dict[str, float]

    def widths(self, keep: NDArray[np.bool_]) -> Floats:
        """The width of every set for a choice of labels, bool, shape (labels,); 1 for the first. Shape (sets,)."""
        return np.array([1.0, *(float(keep[labels].sum()) for labels in self.sets[1:])])

    def total(self, widths: Floats) -> dict[str, float]:
        """All costs at given widths."""
        products = widths[self.factors].prod(1)
        return {kind: float(self.constant[kind] + table @ products) for kind, table in self.coefficients.items()}


def width_cost(groups: ChannelGroups, biased: Iterable[Node] = (), latency: Iterable[tuple[float, Product]] = ()) -> WidthCost:
    """The costs of a labelled graph as functions of its widths, equal to those that `cost` counts on the sliced graph.

    Args:
        groups: the channel groups of the graph.
        biased: layers that may get a bias when they lose inputs. Room for it is counted.
        latency: milliseconds for each unit of a product of axis lengths: the terms of the kind `latency`.
    """
    return _Writer(groups).written(biased, latency)


class _Writer:
    """Collects terms, and numbers the label vectors by content."""

    def __init__(self, groups: ChannelGroups) -> None:
        self.groups, self.labels = groups, groups.labels
        self._whole = {weight.name for node in self.labels.graph.nodes if node.name in groups.whole and (weight := node.get("weight"))}
        self.sets: list[Ints] = [np.zeros(0, np.int64)]
        self._numbers: dict[bytes, int] = {}
        self._terms: dict[tuple[int, ...], dict[str, float]] = {}
        self._axes: dict[str, list[tuple[int, int, Tensor]]] = {}
        for (name, place), found in self.labels.axes.items():
            axis, count = place if isinstance(place, tuple) else (place, 1)
            self._axes.setdefault(name, []).append((axis, count, found))

    def written(self, biased: Iterable[Node], latency: Iterable[tuple[float, Product]]) -> WidthCost:
        """Every node's work, and everything that is held."""
        graph = self.labels.graph
        batch = next((value.sizes[0] for value in graph.inputs if value.shape), 1) or 1
        for node in graph.nodes:
            if node.op == "Opaque":
                self._add((), "macs", (graph.counted_macs(node) or 0) / batch)
            for product in spec_of(node.op).products(node):
                coefficient, sets = self._product(product)
                self._add(sets, "macs", coefficient / batch)
        for held in holdings(graph):
            coefficient, sets = self._parameter(held.name, held.data)
            self._add(sets, "bytes", coefficient * held.data.element_size())
            if held.trained:
                self._add(sets, "params", coefficient)
        for node in biased:
            size, sets = self._product([(node.output, axis) for axis in varying(self.labels.of(node.output))])
            self._add(sets, "params", size)
            self._add(sets, "bytes", size * (node.output.dtype.itemsize if node.output.dtype is not None else 4))
        for milliseconds, product in latency:
            coefficient, sets = self._product(product)
            self._add(sets, "latency", milliseconds * coefficient)
        constants = self._terms.pop((), {})
        width = max((len(sets) for sets in self._terms), default=1)
        factors = np.array([[*sets, *[0] * (width - len(sets))] for sets in self._terms], np.int64).reshape(-1, width)
        tables = {kind: np.array([term.get(kind, 0.0) for term in self._terms.values()]) for kind in (*KINDS, "latency")}
        return WidthCost(self.sets, factors, tables, {kind: constants.get(kind, 0.0) for kind in tables})

    def _add(self, sets: tuple[int, ...], kind: str, coefficient: float) -> None:
        term = self._terms.setdefault(tuple(sorted(sets)), {})
        term[kind] = term.get(kind, 0.0) + coefficient

    def _set(self, labels: Tensor) -> tuple[float, int | None]:
        """The number of a label vector, and how often it is repeated; entries that are no channels make it a constant length."""
        entries = labels.reshape(-1).numpy()
        if not entries.size or entries.min() < 0:
            return float(entries.size), None
        number = self._numbers.setdefault(entries.tobytes(), len(self.sets))
        if number == len(self.sets):
            self.sets.append(entries.astype(np.int64))
        return 1.0, number

    def _parameter(self, name: str, data: Tensor) -> tuple[float, tuple[int, ...]]:
        coefficient, sets = 1.0, []
        for axis, size in enumerate(data.shape):
            factor, found = self._along(name, axis, size)
            coefficient *= factor
            sets += found
        return coefficient, tuple(sets)

    def _along(self, name: str, axis: int, size: int) -> tuple[float, list[int]]:
        """The length of a parameter's axis: a factor, and the set that it is as long as, if any."""
        for number, groups, labels in self._axes.get(name, ()):
            if groups > 1 and number == axis and name in self._whole:
                break  # groups go, and those that stay keep their width
            if number == axis and labels.numel() == size * groups:
                factor, found = self._set(labels)
                return factor / groups, [] if found is None else [found]
        return float(size), []

    def _product(self, product: Product) -> tuple[float, tuple[int, ...]]:
        """A product of sizes as a factor and sets."""
        coefficient, sets = 1.0, []
        by_value: dict[Value, list[int]] = {}
        for value, axis in product:
            by_value.setdefault(value, []).append(axis)
        for value, axes in by_value.items():
            if value.is_param:
                for axis in axes:
                    factor, found = self._along(value.name, axis, value.sizes[axis])
                    coefficient *= factor
                    sets += found
            else:
                factor, found = self._value(value, axes)
                coefficient *= factor
                sets += found
        return coefficient, tuple(sets)

    def _value(self, value: Value, axes: list[int]) -> tuple[float, list[int]]:
        """The product of a value's sizes along some axes. Labels along several axes fill a box, as heads and what each of them holds do."""
        left, coefficient, sets = set(axes), 1.0, []
        for labels in self.labels.parts(value):
            box = varying(labels)
            shared = left.intersection(box)
            if not shared or labels.numel() != prod(value.sizes[axis] for axis in box):
                continue
            if shared != set(box):
                shrinking = {axis for axis in box if not self._is_even(labels, axis)}
                if shrinking and not shared & shrinking:
                    continue  # they keep their length
            factor, found = self._set(labels)
            if found is None:
                continue
            coefficient *= factor / prod(value.sizes[axis] for axis in box if axis not in shared)
            sets.append(found)
            left -= shared
        return coefficient * prod(value.sizes[axis] for axis in left), sets

    def _is_even(self, labels: Tensor, axis: int) -> bool:
        """Whether all slices across an axis keep equally many labels, so that none of them goes: they hold the same groups, or are parts
        of one balance."""
        slices = self.groups.group[labels.movedim(axis, 0).reshape(labels.shape[axis], -1).numpy()]
        if (np.sort(slices, 1) == np.sort(slices[0])).all():
            return True
        return any(_are_parts(slices, self.groups.group[table.numpy()]) for _, table in self.labels.balances if bool((table >= 0).all()))


def _are_parts(slices: Ints, parts: Ints) -> bool:
    """Whether each slice, of shape (slices, entries), is made of whole parts, of shape (parts, entries)."""
    part, size = np.arange(len(parts)).repeat(parts.shape[1]), parts.shape[1]
    order = np.argsort(parts.reshape(-1), kind="stable")
    known = parts.reshape(-1)[order]
    place = np.searchsorted(known, slices).clip(max=known.size - 1)
    if (known[place] != slices).any() or (np.diff(known) == 0).any():
        return False
    found = part[order][place]
    return all((np.bincount(row)[np.unique(row)] == size).all() for row in found)


KINDS = ("macs", "params", "bytes")
"""Costs that widths decide exactly."""
