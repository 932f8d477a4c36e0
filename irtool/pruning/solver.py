"""From options and scores to a proven plan: allocate, slice, and where the proof fails keep more together."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from irtool.channels.balance import Balance
from irtool.channels.groups import NOBODY, ChannelGroups, Pin, channel_groups, group_channels
from irtool.channels.labels import Labels
from irtool.errors import PlanError, ProofError
from irtool.ir.graph import Graph
from irtool.pruning.allocation.allocation import Limits, satisfied, wanted
from irtool.pruning.allocation.budget import LATENCY
from irtool.pruning.allocation.budgeted import Budgeted
from irtool.pruning.allocation.greedy import USED
from irtool.pruning.allocation.latency import Way
from irtool.pruning.allocation.sensitivity import sensitivity
from irtool.pruning.allocation.widths import FINER, in_steps, steps_of
from irtool.pruning.criteria.criteria import Batches, Criterion, Scores, check_finite, group_scores
from irtool.pruning.group_kinds import channels_at_once, coarsest_first, whole_groups
from irtool.pruning.names import names
from irtool.pruning.plan import GroupKind, LayerPlan, Plan
from irtool.pruning.reasons import reason_of, unseparated
from irtool.pruning.residual import stream_pins
from irtool.pruning.slicing.plan_slicing import Planned, find_slicing, own_groups, place_of
from irtool.pruning.slicing.proof import PlaceError
from irtool.pruning.slicing.slicing import slice_channels

Ints = NDArray[np.int64]


@dataclass
class Solver:
    """Plans one graph by one set of options.

    Attributes:
        graph: the graph as the user has it, whose costs shares are taken of.
        prepared: the graph that is planned on.
        options: the plan's, without layers.
        criterion: scores channels, on `batches` if it looks at data.
    """

    graph: Graph
    prepared: Graph
    options: Plan
    criterion: Criterion
    batches: Batches
    widths: Mapping[tuple[str, int], int] = field(default_factory=dict)
    """Channels that each layer had before an earlier stage took some, by its place."""
    images: Batches | None = None
    """Batches that families are measured on, if they are."""
    pins: list[tuple[NDArray[np.int64], Pin]] = field(default_factory=list)
    together: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = field(default_factory=list)
    """Labels that go together so that each channel keeps its place."""
    wish: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    """The groups that the ratio asks for, before any condition."""

    notes: tuple[str, ...] = ()
    _scored: dict[bytes, Scores] = field(default_factory=dict)

    @cached_property
    def whole(self) -> frozenset[str]:
        """The grouped convolutions whose groups go as a whole."""
        return whole_groups(channel_groups(self.prepared), self.options.groups, self.options.budget, self.options.round_to)

    def _fitting_whole(self) -> frozenset[str]:
        """Leave out those that are too coarse for the budget where that is left open: whole groups may not reach it, or leave much
        of it unused. Of several choices the first that uses it, else the one that uses most."""
        if self.options.groups != "auto" or not self.whole or LATENCY in self.options.budget:
            return self.whole
        best, most = self.whole, -np.inf
        for whole in coarsest_first(channel_groups(self.prepared), self.whole):
            used = self._share_used(whole)
            if used > most:
                best, most = whole, used
            if used >= USED:
                break
        return best

    def _share_used(self, whole: frozenset[str]) -> float:
        """Return the share of the budget that an allocation uses, before it is proven; -1 if it does not keep to it."""
        labels = channel_groups(self.prepared).labels
        groups = self._grouped(labels, NOBODY, NOBODY, stream_pins(labels, self.options.residual) + self._ignored(), whole)
        try:
            self._allocate(groups, self._scores(groups))
        except PlanError:
            return -1.0
        return self._budgeted.used

    @cached_property
    def _budgeted(self) -> Budgeted:
        images = self.images
        measure = None if images is None else lambda groups, stacks, room: sensitivity(groups, stacks, room, images)
        return Budgeted(self.graph, self.options, widths=self.widths, measure=measure)

    def way(self) -> Way:
        """This solver, as one way to keep to a latency budget."""
        return Way(self._budgeted, self.solve, self.loss, self.whole)

    def by_kind(self) -> list[Solver]:
        """This solver, or one for whole groups and one for channels of each where that is left open."""
        if self.options.groups != "auto" or not self.whole:
            return [self]
        kinds: tuple[GroupKind, ...] = ("whole", "even")
        return [dataclasses.replace(self, options=dataclasses.replace(self.options, groups=kind), _scored={}) for kind in kinds]

    def loss(self) -> float:
        """The loss that the scores expect of the next allocation, before it is proven."""
        labels = channel_groups(self.prepared).labels
        groups = group_channels(labels, pins=stream_pins(labels, self.options.residual) + self._ignored(), whole=self.whole)
        scores = self._scores(groups)
        return float(np.nansum(self._weighed(groups, scores)[self._allocate(groups, scores)]))

    def solve(self) -> Planned[Graph]:
        """Plan, prove, and where the proof fails fall back: keep places, leave groups whole, balance strictly, couple balanced families,
        then pin what cannot be proven."""
        labels = channel_groups(self.prepared).labels
        base = stream_pins(labels, self.options.residual) + self._ignored()
        whole, couple, strict = self._fitting_whole(), NOBODY, NOBODY
        for attempt in range(12):
            pins = base + self.pins
            groups = channel_groups(self.prepared)
            if attempt or pins or whole or _nameless(groups).size:
                groups = self._grouped(labels, couple, strict, pins, whole)
            scores = self._scores(groups)
            remove = self._allocate(groups, scores)
            try:
                keep = ~remove[groups.group] if groups.count else np.zeros(0, bool)
                done = slice_channels(self.prepared, labels, keep, self.graph if self.options.branches else None)
            except PlaceError as error:
                self.together += error.pairs
                continue
            except ProofError as error:
                if whole:
                    whole = frozenset()
                else:
                    couple, strict = self._tightened(groups, self._touched(error, groups, remove), error, couple, strict)
                continue
            if self.options.budget and not self._budgeted.keeps(done.program, whole=not remove.any()):
                continue
            return Planned(self._describe(groups, scores, remove), done)
        if self.options.budget:
            remedy = "Name the layers that cannot be followed in ignore=, and please report this model."
            raise PlanError("no choice of channels was proven that keeps to it", where="budget", remedy=remedy)
        made = self._describe(groups, scores, np.zeros(groups.count, bool))
        return Planned(made, find_slicing(self.graph, made))

    def _tightened(self, groups: ChannelGroups, touched: Ints, error: ProofError, couple: Ints, strict: Ints) -> tuple[Ints, Ints]:
        """After a proof that failed: the labels of balanced families that are to be coupled, and of those that lose strictly equally many.

        Where no balance is left to tighten, the touched channels are pinned.
        """
        hit = [balance for balance in groups.balances if np.isin(np.concatenate(balance.cells), groups.group[touched]).any()]
        if any(balance.split for balance in hit):  # others like these would fail next
            return np.concatenate([couple, _labels_of(groups, [balance for balance in groups.balances if balance.split])]), strict
        if not np.isin(found := _labels_of(groups, hit), strict).all():
            return couple, np.concatenate([strict, found])
        if hit or groups.balances:  # at last those of other places, which decide what is left here
            return np.concatenate([couple, _labels_of(groups, hit or groups.balances)]), strict
        self.pins.append((touched, Pin(f"no proof: {error.what}", error.where or "graph")))
        return couple, strict

    def _grouped(
        self, labels: Labels, couple: Ints, strict: Ints, pins: Sequence[tuple[Ints, Pin]], whole: frozenset[str]
    ) -> ChannelGroups:
        """The channel groups under all that is known; balanced families with channels that a plan cannot name stay."""
        groups = group_channels(labels, couple=couple, strict=strict, pins=pins, together=self.together, whole=whole)
        if not (nameless := _nameless(groups)).size:
            return groups
        pin = Pin("is balanced with channels that no layer makes", groups.labels.balances[0][0].location)
        return group_channels(labels, couple=couple, strict=strict, pins=[*pins, (nameless, pin)], together=self.together, whole=whole)

    def _scores(self, groups: ChannelGroups) -> Scores:
        """One score a group. Those of criteria that see data are kept while the groups are the same."""
        key = groups.group.tobytes() + groups.pinned.tobytes()
        if key not in self._scored:
            self._scored[key] = group_scores(groups, self.criterion, self.options.seed, self.batches)
            check_finite(groups, self.options.criterion)
        return self._scored[key]

    def _weighed(self, groups: ChannelGroups, scores: Scores) -> Scores:
        """Losses that can be added up: norms are means over channels, while criteria that see data score all of a group at once."""
        return scores * channels_at_once(groups) if self.criterion.reads == "parameters" else scores

    def _allocate(self, groups: ChannelGroups, scores: Scores) -> NDArray[np.bool_]:
        options = self.options
        if options.budget:
            self.wish = self._budgeted.allocate(groups, self._weighed(groups, scores))
            self.notes = self._budgeted.notes
            return self.wish
        listed = np.zeros(groups.count, bool)
        for found in groups.owned:
            listed[found] = True

        def chosen_by(ratio: float, steps: NDArray[np.int64] | None) -> NDArray[np.bool_]:
            # what no layer makes has no place in a plan, and would be back when it is read from a file
            wish = wanted(groups, scores, ratio, options.scope, inclusive=self.criterion.inclusive) & listed
            return satisfied(groups, scores, wish, Limits(options.min_channels, steps))

        self.wish = wanted(groups, scores, options.ratio, options.scope, inclusive=self.criterion.inclusive) & listed
        if options.round_to != "auto":
            return chosen_by(options.ratio, steps_of(groups, options.round_to))
        remove, finer = in_steps(groups, chosen_by, options.ratio)
        self.notes = (FINER.format("the ratio"),) if finer else ()
        return remove

    def _touched(self, error: ProofError, groups: ChannelGroups, remove: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The labels of what flows into the node whose proof failed; all of those that go if the node is not known."""
        nodes = [
            node
            for node in self.prepared.nodes
            if error.where in (node.location, node.name) or any(v.name == error.where for v in node.outputs)
        ]
        values = [value for node in nodes for value in (*node.inputs, *node.outputs)]
        found = [
            groups.labels.of(value).reshape(-1).numpy()
            for value in values
            if value.shape is not None and (value.is_param or value in groups.labels.values)
        ]
        touched = np.concatenate(found) if found else np.zeros(0, np.int64)
        touched = touched[(touched >= 0) & (touched < groups.group.size)]  # a parameter that nothing labelled has none
        if not remove[groups.group[touched]].any():
            touched = np.flatnonzero(remove[groups.group])
        return touched

    def _ignored(self) -> list[tuple[NDArray[np.int64], Pin]]:
        layers = channel_groups(self.prepared).layers
        pins = []
        for name in self.options.ignore:
            chosen = [layer for layer in layers if names(name, layer.node)]
            if not chosen:
                self._unknown(name, [layer.node.location for layer in layers])
            pins += [(layer.labels.numpy(), Pin(f"ignore={name!r}", layer.node.location)) for layer in chosen]
        return pins

    def _unknown(self, name: str, known: list[str]) -> None:
        """An ignored name without layers is fine if the module exists, and an error if not."""
        paths = self.prepared.paths()
        if name in paths:
            return
        near = difflib.get_close_matches(name, known + paths, 3, 0.4)
        raise PlanError(
            f"no layer is called {name!r}",
            where="ignore",
            remedy=f"Did you mean {', '.join(near)}?" if near else "irtool inspect lists the layers.",
        )

    def _describe(self, groups: ChannelGroups, scores: Scores, remove: NDArray[np.bool_]) -> Plan:
        layers: dict[tuple[str, int], LayerPlan] = {}
        for layer in groups.layers:
            if place_of(layer) in layers:
                continue  # called again, or its weight is another layer's too: the same channels
            own = own_groups(groups, layer)
            gone = np.flatnonzero(remove[own])
            reason = reason_of(groups, scores, layer, asked=bool(self.wish[own].any()), gone=bool(gone.size), options=vars(self.options))
            layers[place_of(layer)] = LayerPlan(layer.node.location, *place_of(layer), own.size, tuple(gone.tolist()), reason)
        total = sum(layer.total for layer in layers.values())
        ratio = sum(len(layer.removed) for layer in layers.values()) / max(total, 1) if self.options.budget else self.options.ratio
        notes = unseparated(groups, scores, remove) if self.criterion.name == "bn_scale" else ()
        return dataclasses.replace(self.options, layers=tuple(layers.values()), ratio=ratio, notes=(*self.notes, *notes))


def _labels_of(groups: ChannelGroups, balances: Sequence[Balance]) -> NDArray[np.int64]:
    """The labels of some balanced families."""
    cells = [cell for balance in balances for cell in balance.cells]
    return np.flatnonzero(np.isin(groups.group, np.concatenate(cells))) if cells else NOBODY


def _nameless(groups: ChannelGroups) -> NDArray[np.int64]:
    """Labels in balanced families that no layer makes (a stored tensor's that is joined to channels). A plan cannot name them, so they
    must stay, or it would be another one when it is read."""
    members = np.concatenate([cell for balance in groups.balances for cell in balance.cells] or [NOBODY])
    lost = np.setdiff1d(members, np.concatenate(groups.owned or [members]))
    return np.flatnonzero(np.isin(groups.group, lost))
