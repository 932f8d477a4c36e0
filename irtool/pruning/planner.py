"""Planning: which channels go, and the proven rewrite that a plan stands for."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from irtool.channels.groups import ChannelGroups, Pin, channel_groups, group_channels
from irtool.channels.labels import Layer
from irtool.errors import PlanError, ProofError
from irtool.garbage import uncollected
from irtool.ir.graph import G, Graph
from irtool.pruning.allocation import Limits, settle, wanted
from irtool.pruning.criteria import CRITERIA, Scores, check_finite, group_scores
from irtool.pruning.plan import LayerPlan, Plan, Residual, Scope, check_choice, check_names, check_once, check_positions, check_values
from irtool.pruning.proof import PlaceError
from irtool.pruning.residual import insert_selects, stream_pins
from irtool.pruning.slicing import Rewrite, rewrite
from irtool.tensor_defaults import plain_tensors

__all__ = ["LayerPlan", "Plan", "check_options", "find_rewrite", "plan", "prepare"]


@uncollected()
@plain_tensors()
def plan(graph: Graph, criterion: str = "l1", ratio: float = 0.5, scope: Scope = "global", residual: Residual = "couple", min_channels: int = 1,
         round_to: int = 1, ignore: str | Sequence[str] = (), seed: int = 0) -> Plan:  # fmt: skip
    """Decide which channels go. Every plan that is returned has been proven on the graph: `prune` cannot fail on it.

    Args:
        graph: a traced graph; it is not changed.
        criterion: a name in `CRITERIA`: bn_scale, l1, l2, random.
        ratio: the fraction of channels to remove, 0 <= ratio < 1: of all prunable channels (`scope="global"`) or of each
            layer (`"local"`). What a condition below forbids stays.
        residual: streams that additions join are pruned with all that write to them (`"couple"`), kept (`"keep"`), or kept
            and selected from before each batch norm that reads them (`"select"`, the published arrangement).
        min_channels: no layer keeps fewer (or fewer than it has).
        round_to: every layer keeps a multiple of this, where it can.
        ignore: module paths, or one, whose layers stay as they are, sub-modules included.
        seed: for the random criterion.

    Raises:
        PlanError: an option has an impossible value, or names a layer that does not exist.
    """
    check_options(criterion, ratio, scope, residual, min_channels, round_to, seed)
    # Numbers of numpy's are welcome, and a plan is JSON data.
    made = Plan((), criterion, float(ratio), scope, residual, int(min_channels), int(round_to), check_names("ignore", ignore), int(seed))
    prepared = prepare(graph, residual)
    return _Planner(graph, prepared, made).solve()


def check_options(criterion: str, ratio: float, scope: str, residual: str, min_channels: int, round_to: int, seed: int = 0) -> None:
    """Refuse impossible options before any work is done.

    Raises:
        PlanError: the option and its allowed values are named.
    """
    check_choice("criterion", criterion, CRITERIA)
    check_values(ratio, scope, residual, min_channels, round_to, seed)


def prepare(graph: G, residual: str) -> G:
    """The graph that a plan with this `residual` speaks of: with selections inserted for `"select"`."""
    if residual != "select":
        return graph
    if "selected" not in graph.analyses:
        graph.analyses["selected"] = insert_selects(graph, shared=True)
    found: G = graph.analyses["selected"]
    return found


@dataclass
class _Planner:
    graph: Graph
    prepared: Graph
    options: Plan
    pins: list[tuple[NDArray[np.int64], Pin]] = field(default_factory=list)
    together: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = field(default_factory=list)
    """Labels that go together so that each channel keeps its place."""
    wish: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    """The groups that the ratio asks for, before any condition."""

    def solve(self) -> Plan:
        """Plan, prove, and where the proof fails fall back: keep places, couple balanced families, then pin what cannot be proven."""
        labels = channel_groups(self.prepared).labels
        base = stream_pins(labels, self.options.residual) + self._ignored()
        couple = False
        for attempt in range(12):
            pins = base + self.pins
            groups = channel_groups(self.prepared)
            if attempt or pins:
                groups = group_channels(labels, couple=couple, pins=pins, together=self.together)
            scores = group_scores(groups, self.options.criterion, self.options.seed)
            check_finite(groups, self.options.criterion)
            remove = self._allocate(groups, scores)
            try:
                done = rewrite(self.prepared, labels, ~remove[groups.group] if groups.count else np.zeros(0, bool))
            except PlaceError as error:
                self.together += error.pairs
                continue
            except ProofError as error:
                if couple or not groups.balances:
                    self._pin_place(error, groups, remove)
                couple = True
                continue
            made = self._describe(groups, scores, remove)
            self.graph.analyses["rewrite"] = (made, done)
            return made
        return self._describe(groups, scores, np.zeros(groups.count, bool))

    def _allocate(self, groups: ChannelGroups, scores: Scores) -> NDArray[np.bool_]:
        options = self.options
        self.wish = wanted(groups, scores, options.ratio, options.scope, inclusive=options.criterion == "bn_scale")
        listed = np.zeros(groups.count, bool)
        for found in groups.owned:
            listed[found] = True
        self.wish &= listed  # what no layer makes has no place in a plan, and would be back when it is read from a file
        return settle(groups, scores, self.wish, Limits(options.min_channels, options.round_to))

    def _pin_place(self, error: ProofError, groups: ChannelGroups, remove: NDArray[np.bool_]) -> None:
        """Leave alone what flows into the node whose proof failed; all of it if the node is not known."""
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
        self.pins.append((touched, Pin(f"no proof: {error.what}", error.where or "graph")))

    def _ignored(self) -> list[tuple[NDArray[np.int64], Pin]]:
        layers = channel_groups(self.prepared).layers
        pins = []
        for name in self.options.ignore:
            chosen = [
                layer
                for layer in layers
                if layer.node.location == name or layer.node.location.startswith(name + ".") or layer.node.name == name
            ]
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
            if _place(layer) in layers:
                continue  # called again, or its weight is another layer's too: the same channels
            own = _own(groups, layer)
            gone = np.flatnonzero(remove[own])
            reason = ""
            pinned = np.flatnonzero(groups.pinned[own])
            if pinned.size:
                reason = str(groups.reasons[int(own[pinned[0]])])
                reason = reason if pinned.size == own.size else f"{pinned.size} channels stay: {reason}"
            elif np.isnan(scores[own]).all():
                reason = f"{self.options.criterion} has no score here"
            elif own.size > 1 and (own == own[0]).all():
                reason = "all its channels are one group, which cannot go"
            elif not gone.size and self.wish[own].any():
                reason = self._unmet(groups, layer)
            layers[_place(layer)] = LayerPlan(layer.node.location, *_place(layer), own.size, tuple(gone.tolist()), reason)
        return dataclasses.replace(self.options, layers=tuple(layers.values()))

    def _unmet(self, groups: ChannelGroups, layer: Layer) -> str:
        """Why a layer loses nothing though the ratio asks for some of its channels."""
        own = layer.labels.numpy()
        balanced = next((node for node, table in groups.labels.balances if np.isin(table.numpy(), own).any()), None)
        limits = [f"{name}={value}" for name in ("min_channels", "round_to") if (value := getattr(self.options, name)) > 1]
        if balanced is not None:
            return f"nothing can go that leaves {' and '.join(['all parts equally wide', *limits])} (at {balanced.location})"
        return f"nothing can go that leaves {' and '.join(limits) or 'the axes whole that its channels are split into'}"


def find_rewrite(graph: G, plan: Plan) -> Rewrite[G]:
    """The proven rewrite for a plan: the one that planning made, or made anew for a plan from a file.

    Raises:
        PlanError: the plan belongs to another model.
        ProofError: it cannot be carried out on this graph.
    """
    cached = graph.analyses.pop("rewrite", None)
    if isinstance(cached, tuple) and cached[0] is plan:
        found = cached[1]
        assert isinstance(found, Rewrite)
        return found
    prepared = prepare(graph, plan.residual)
    groups = channel_groups(prepared)
    remove = _removed(plan, groups)
    if (remove & groups.pinned).any():
        group = int(np.flatnonzero(remove & groups.pinned)[0])
        raise PlanError(f"the plan removes channels that must stay: {groups.reasons[group]}", remedy="Make the plan again for this model.")
    try:
        return rewrite(prepared, groups.labels, ~remove[groups.group])
    except ProofError as error:  # planning proves what it makes: this plan was changed, or is another model's
        uneven = _uneven(groups, remove)
        what, where = (
            (f"it removes {uneven[1]} channels of its groups, which must lose equally many", uneven[0])
            if uneven
            else (error.what, error.where)
        )
        remedy = "Make the plan again for this model, or correct it there."
        raise ProofError(f"the plan cannot be carried out: {what}", where=where, remedy=remedy) from error


def _uneven(groups: ChannelGroups, remove: NDArray[np.bool_]) -> tuple[str, str] | None:
    """The first place whose parts lose different numbers of channels, and these numbers."""
    for node, tensor in groups.labels.balances:
        table = tensor.numpy()
        lost = ((table >= 0) & remove[groups.group[table]]).sum(1)
        if lost.min() < lost.max():
            return node.location, ", ".join(map(str, lost.tolist()))
    return None


def _removed(plan: Plan, groups: ChannelGroups) -> NDArray[np.bool_]:
    """Whether a plan removes each group; refuses one that another model has, or that its layers do not agree on."""
    layers = {_place(layer): layer for layer in groups.layers}
    remove = np.zeros(groups.count, bool)
    check_once(plan.layers)
    for entry in plan.layers:
        layer = layers.get((entry.parameter, entry.axis))
        if layer is None or layer.labels.numel() != entry.total:
            have = "no such layer" if layer is None else f"{layer.labels.numel()} channels"
            raise PlanError(
                f"the plan speaks of {entry.total} channels, this model has {have}",
                where=entry.name,
                remedy="Use the plan with the model it was made for.",
            )
        check_positions(entry.removed, entry.total, entry.name)
        if len(entry.removed) == entry.total:
            raise PlanError(f"the plan removes all {entry.total} channels", where=entry.name, remedy="Leave at least one in each layer.")
        remove[_own(groups, layer)[list(entry.removed)]] = True
    entries = {(entry.parameter, entry.axis): entry for entry in plan.layers}
    for place, layer in layers.items():
        stays = remove[_own(groups, layer)]
        stays[list(entries[place].removed) if place in entries else []] = False
        if stays.any():
            raise _disagreement(plan, groups, layer, int(np.flatnonzero(stays)[0]))
    return remove


def _disagreement(plan: Plan, groups: ChannelGroups, layer: Layer, stays: int) -> PlanError:
    """One layer keeps a channel, and another removes one of its group."""
    layers = {_place(layer): layer for layer in groups.layers}
    group = _own(groups, layer)[stays]
    other, goes = next(
        (entry.name, position)
        for entry in plan.layers
        for position in entry.removed
        if _own(groups, layers[entry.parameter, entry.axis])[position] == group
    )
    return PlanError(
        f"the plan keeps channel {stays} of this layer and removes channel {goes} of {other}, which live and die together",
        where=layer.node.location,
        remedy="Remove both or neither, or make the plan again.",
    )


def _place(layer: Layer) -> tuple[str, int]:
    """What a plan calls a layer by: its parameter, and the axis that makes the channels."""
    name, axis = layer.key
    return name, axis if isinstance(axis, int) else axis[0]


def _own(groups: ChannelGroups, layer: Layer) -> NDArray[np.int64]:
    """The group of each channel of a layer."""
    return groups.group[layer.labels.numpy()]
