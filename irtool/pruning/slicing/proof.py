"""The second walk: run the surviving labels through the rewritten graph and prove that they meet as they met before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from irtool.channels.kept import Kept
from irtool.channels.labels import Key, Labels, Walk
from irtool.channels.positions import alike_in_place, misplaced
from irtool.errors import GraphError, ProofError
from irtool.ir.graph import Node, Value
from irtool.ops.rules.context import Axis, same

_REMEDY = "This is a gap in irtool's operator table; name the module in ignore=, and please report it."


class PlaceError(ProofError):
    """Channels would come to lie at other places (of a pixel, of a head) than before.

    Attributes:
        pairs: arrays of labels; if each goes with its partner, all keep their places.
    """

    def __init__(self, where: str, pairs: list[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> None:
        super().__init__("channels would come to lie at other places than before", where=where, remedy=_REMEDY)
        self.pairs = pairs


@dataclass
class Replay(Walk):
    """Checks every meeting, and finds the order in which surviving channels arrive at each parameter.

    Args:
        graph: the rewritten graph.
        before: the first walk over the original graph.
        surviving: which labels stay.

    After `run`, `orders[key]` holds the positions of the entries of each parameter axis that stay, in their new order;
    None where the axis is as it was.
    """

    before: Labels = None  # type: ignore[assignment]
    surviving: Kept = None  # type: ignore[assignment]
    orders: dict[Key, Tensor | None] = field(default_factory=dict)
    _own: dict[Key, Tensor] = field(default_factory=dict)
    """The labels of each axis in that order."""
    _left: dict[Key, tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    """Labels and positions of each axis in the order that it had."""
    _fixed: set[Key] = field(default_factory=set)
    _empty: set[str] = field(default_factory=set)
    """Names of values that hold nothing in the original either, such as the slice of no prefix tokens."""
    _met: list[tuple[Node, Tensor, Tensor]] = field(default_factory=list)
    _tied: list[tuple[Node, Tensor, Tensor]] = field(default_factory=list)
    _counts: dict[str, int] = field(default_factory=dict)
    """How many groups each node had: axes are named after that."""

    def run(self) -> None:
        """Walk, then check all meetings at once.

        Raises:
            ProofError: something meets that did not meet before; the text names the node.
        """
        originals = {node.name: node for node in self.before.graph.nodes}
        self._empty = {value.name for node in originals.values() for value in node.outputs if 0 in value.sizes}
        self._counts = {name: node.attrs.get("group", 1) for name, node in originals.items() if node.op in ("Conv", "ConvTranspose")}
        try:
            super().run()
        except (RuntimeError, ValueError, AssertionError, IndexError, GraphError) as error:
            if isinstance(error, ProofError):
                raise
            raise ProofError(
                f"sizes do not fit after slicing ({str(error).splitlines()[0] if str(error) else error!r})", remedy=_REMEDY
            ) from error
        self._check(self._met, self.before.meetings)
        self._check(self._tied, self.before.ties)
        self._check_complete()
        self._check_groups()
        self._check_places()
        self._check_sizes(originals)
        for old, new in zip(self.before.graph.outputs, self.graph.outputs, strict=True):
            if not torch.equal(self.before.of(old), self.of(new)):
                raise ProofError(
                    "an output has other channels than before",
                    where=originals["output"].location if "output" in originals else old.name,
                    remedy=_REMEDY,
                )

    def original(self, value: Value) -> Value:
        """The parameter before slicing, whose sizes the first walk went by."""
        return self.before.graph.params.get(value.name, value)

    def _check_complete(self) -> None:
        """Every parameter axis that lost entries must have been read again."""
        for key, old in self.before.axes.items():
            if key not in self.orders and key[0] in self.graph.params and self.surviving.of(old)[1] is not None:
                raise ProofError("nothing reads the channels of this parameter any more", where=key[0], remedy=_REMEDY)

    def _check_groups(self) -> None:
        """The channels of each group of a grouped convolution must be channels that it had, of groups that went, both sides."""
        for name, axis in self.orders:
            if isinstance(axis, int) or name not in self.graph.params:
                continue
            number, groups = axis
            sizes = self.before.graph.params[name].sizes
            left = self.graph.params[name].sizes
            own = self._owners((name, axis), sizes[number], groups).reshape(-1, left[number])
            other = self._owners((name, 1 - number), sizes[1 - number] // groups, groups)
            stays = own[:, :1]
            whole = bool((own == stays).all()) and bool((stays[1:] > stays[:-1]).all()) and other.numel() % len(stays) == 0
            if not whole or bool((other.reshape(len(stays), -1) != stays).any()):
                raise ProofError("a grouped convolution would mix its groups", where=name, remedy=_REMEDY)

    def _owners(self, key: Key, width: int, groups: int) -> Tensor:
        """The group that each entry of an axis was of, in the order in which they stay."""
        found = self.orders.get(key)
        return (torch.arange(groups * width) if found is None else found) // width

    def _check_places(self) -> None:
        """Check that each channel keeps its place where an index is a channel and a place: labels alone do not tell."""
        after = {value.name: value for value in self.values}
        seen = {where[:2] for where in self.before.names()}
        pairs, place = [], ""
        for value in self.before.values:
            olds = self.before.parts(value)
            if all(old.numel() < 3 or (old.data_ptr(), old.numel()) in seen for old in olds) or value.name not in after:
                continue  # most values hold the labels that another one holds
            seen |= {(old.data_ptr(), old.numel()) for old in olds if len(olds) == 1}
            stays = reduce(np.logical_and, (self.surviving.keep[old.numpy()] for old in olds))
            for old, new in zip(olds, self.parts(after[value.name]), strict=False):
                if new.numel() and old.dim() == new.dim() and misplaced(old.numpy(), new.numpy(), stays):
                    pairs.append(alike_in_place(old.numpy()))
                    place = place or value.name
        if pairs:
            raise PlaceError(place, pairs)

    def _check_sizes(self, originals: Mapping[str, Node]) -> None:
        """A value may only shrink along axes of channels: what else it holds (heads, positions) has no name by which it could be told apart.

        What an operator that irtool does not know gives is as long as its data have it (the points that a detector finds), which each reading
        of the program may see otherwise; all that flows into it stays.
        """
        by_data: set[Value] = set()
        for node in self.graph.nodes:
            old = originals.get(node.name)
            if node.op == "Opaque" or any(value in by_data for value in node.inputs):
                pairs = zip(old.outputs, node.outputs, strict=False) if old is not None else ()
                by_data.update(after for before, after in pairs if before.shape != after.shape)
                continue
            for before, after in zip(old.outputs, node.outputs, strict=False) if old is not None else ():
                if before.shape is None or after.shape in (None, before.shape) or 0 in before.sizes:
                    continue
                parts = self.before.parts(before)
                for axis, (was, size) in enumerate(zip(before.sizes, after.sizes, strict=False)):
                    if was != size and all(labels.shape[axis] == 1 for labels in parts):
                        raise ProofError("would lose entries that are no channels", where=node.location, remedy=_REMEDY)

    def put(self, value: Value, labels: Tensor) -> None:
        """Set labels; each axis must be broadcast or of the real size, and something must be left where something was."""
        if not labels.numel() and value.name not in self._empty:
            raise ProofError("no channel would be left", where=value.name, remedy=_REMEDY)
        for size, real in zip(labels.shape, value.sizes, strict=True):
            if size not in (1, real):
                raise ProofError(f"{tuple(labels.shape)} labels for a value of shape {value.sizes}", where=value.name, remedy=_REMEDY)
        super().put(value, labels)

    def param(self, value: Value, axis: Axis) -> Tensor:
        """The surviving labels of a parameter's axis."""
        key = (value.name, axis)
        if key not in self._own:
            old = self.before.axes.get(key)
            if old is None:
                raise ProofError("a parameter axis that had no channels has some now", where=value.name, remedy=_REMEDY)
            self._left[key] = self._own[key], self.orders[key] = self.surviving.of(old)
        return self._own[key]

    def produce(self, node: Node, value: Value, axis: Axis) -> Tensor:
        """Output labels: their order is settled from here on."""
        axis = self._named(node, axis)
        self._fixed.add((value.name, axis))
        return self.param(value, axis)

    def _named(self, node: Node, axis: Axis) -> Axis:
        """An axis as the first walk calls it: whole groups of a convolution may have gone."""
        return axis if isinstance(axis, int) else (axis[0], self._counts.get(node.name, axis[1]))

    def fresh(self, node: Node, count: int) -> Tensor:
        """Kept of the channels that a node makes."""
        kept, _ = self.surviving.of(self.before.axes[f"node:{node.name}", 0])
        if kept.numel() != count:
            raise ProofError(f"makes {count} channels where {kept.numel()} should stay", where=node.location, remedy=_REMEDY)
        return kept

    def unify(self, node: Node, a: Tensor, b: Tensor) -> None:
        """Note a meeting for the check at the end."""
        self._met.append((node, a, b))

    def read(self, node: Node, value: Value, axis: Axis, arriving: Tensor) -> None:
        """Channels arrive at a parameter's axis: the first reading settles its order, later ones must agree."""
        axis = self._named(node, axis)
        key = (value.name, axis)
        own = self.param(value, axis)
        if own.numel() == 1 and arriving.numel() != 1 and int(own[0]) < 0:
            own = own.expand(arriving.numel())
        if own.numel() != arriving.numel():
            raise ProofError(
                f"{arriving.numel()} channels arrive at {own.numel()} entries of {value.name}", where=node.location, remedy=_REMEDY
            )
        read = self.before.reads.get((node.name, key))
        if read is None:
            raise ProofError(f"reads {value.name}, which it did not read before", where=node.location, remedy=_REMEDY)
        old_arriving, old_own = read
        partners, positions = self._left[key] if old_own is self.before.axes[key] else self.surviving.of(old_own)
        expected = old_arriving if positions is None else partners if old_arriving is old_own else old_arriving[positions]
        if not (same(expected, arriving) and same(partners, own)):
            if key not in self._fixed:
                order = _reorder(arriving, expected, torch.arange(old_own.numel()) if positions is None else positions, node)
                own = self._own[key] = old_own[order]
                self.orders[key] = order if int(old_own[0]) >= 0 else None
            if not torch.equal(arriving, own):  # a channel may always meet what is named after it
                self._met.append((node, arriving, own))  # in another order than before: pair by pair at the end
        self._fixed.add(key)

    def tie(self, node: Node, source: Tensor, copies: Tensor) -> None:
        """A selection must take its copies from the sources they had."""
        self._tied.append((node, source, copies))

    def decide(self, node: Node, key: str, value: bool) -> bool:
        """The choice of the first walk."""
        return self.before.decisions.get((node.name, key), value)

    def pin(self, node: Node, labels: Tensor, reason: str) -> None:
        """Pins shape the plan; here they are past."""

    balance = box = lambda self, node, table: None

    def floor(self, labels: Tensor) -> None:
        """Floors shape the plan; here they are past."""

    def inexact(self, node: Node, table: Tensor, why: str) -> None:
        """Listed on the first walk."""

    def _check(self, now: list[tuple[Node, Tensor, Tensor]], before: list[tuple[Node, Tensor, Tensor]]) -> None:
        """Every pair that meets now, at its node, must be among the pairs that met there before."""
        numbers = {node.name: index for index, node in enumerate(self.before.graph.nodes)}
        now = [entry for entry in now if entry[1].numel()]
        if not now:
            return
        names = {node.name for node, _, _ in now}
        old = np.sort(_codes([entry for entry in before if entry[0].name in names], numbers, self.before.count + 1))
        for entry in now:
            if entry[1].numel() != entry[2].numel():
                raise ProofError("operands of different sizes meet", where=entry[0].location, remedy=_REMEDY)
        codes = _codes(now, numbers, self.before.count + 1)
        found = np.searchsorted(old, codes)
        missing = (found >= old.size) | (old[np.minimum(found, old.size - 1)] != codes) if old.size else np.ones(codes.size, bool)
        if missing.any():
            bounds = np.cumsum([a.numel() for _, a, _ in now])
            node = now[int(np.searchsorted(bounds, int(np.argmax(missing)), side="right"))][0]
            raise ProofError(f"channels meet in {node.op} that did not meet before", where=node.location, remedy=_REMEDY)


def _codes(meetings: list[tuple[Node, Tensor, Tensor]], numbers: dict[str, int], base: int) -> NDArray[np.int64]:
    """One number for each (node, label, label)."""
    if not meetings:
        return np.zeros(0, np.int64)
    node = np.repeat([numbers[node.name] for node, _, _ in meetings], [a.numel() for _, a, _ in meetings]).astype(np.int64)
    a = np.concatenate([a.reshape(-1).numpy() for _, a, _ in meetings]) + 1
    b = np.concatenate([b.reshape(-1).numpy() for _, _, b in meetings]) + 1
    codes: NDArray[np.int64] = (node * base + a) * base + b
    return codes


def _reorder(arriving: Tensor, expected: Tensor, own: Tensor, node: Node) -> Tensor:
    """The axis's entries in the order in which their partners arrive; the k-th arrival of a label takes its k-th partner."""
    a, e = arriving.numpy(), expected.numpy()
    by_arrival, by_expectation = np.argsort(a, kind="stable"), np.argsort(e, kind="stable")
    if not np.array_equal(a[by_arrival], e[by_expectation]):
        raise ProofError("other channels arrive than were sliced for", where=node.location, remedy=_REMEDY)
    order = np.empty(len(a), np.int64)
    order[by_arrival] = own.numpy()[by_expectation]
    return torch.from_numpy(order)
