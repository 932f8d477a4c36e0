"""The proven slicing that a plan stands for: what planning proved, or proven on a graph, or refused with what does not fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, cast
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from irtool.channels.groups import ChannelGroups, channel_groups
from irtool.channels.labels import Layer
from irtool.errors import PlanError, ProofError
from irtool.ir.analyses import once
from irtool.ir.graph import G, Graph
from irtool.pruning.branches import chosen_branches, cut, mean_outputs, set_constants
from irtool.pruning.plan import Plan, check_once, check_positions
from irtool.pruning.residual import insert_selects
from irtool.pruning.slicing.slicing import Slicing, slice_channels


@dataclass(frozen=True)
class Planned(Generic[G]):
    """A plan, and the slicing that planning proved for it."""

    plan: Plan
    slicing: Slicing[G]

    def saying(self, **changes: Any) -> Planned[G]:
        """Return a plan with the same choice of channels and other values in some of its fields."""
        return Planned(dataclasses.replace(self.plan, **changes), self.slicing)

    def remembered(self, graph: G) -> Plan:
        """The plan, for the user. Its slicing is kept with the graph that it is for, as long as both live."""
        _proven(graph)[self.plan] = on_copy(self.slicing, graph, self.plan)
        return self.plan


@once
def _proven(graph: Graph) -> WeakKeyDictionary[Plan, Slicing[Any]]:
    """The slicings of a graph that were proven, each as long as somebody holds its plan: nothing but a plan can ask for it."""
    return WeakKeyDictionary()


@once
def _prepared(graph: Graph) -> WeakValueDictionary[tuple[str, ...], Graph]:
    """The forms of a graph that plans speak of, each as long as a slicing, or somebody at work, holds it."""
    return WeakValueDictionary()


def prepare(graph: G, residual: str, branches: Sequence[str] = ()) -> G:
    """The graph that a plan speaks of: without the branches that it takes out, with selections inserted for `residual="select"`.

    Raises:
        PlanError: the graph has no such branches.
    """
    if residual != "select" and not branches:
        return graph
    known, key = cast("WeakValueDictionary[tuple[str, ...], G]", _prepared(graph)), (residual, *branches)
    found = known.get(key)
    if found is None or not _shares_weights(found, graph):
        left = cut(graph, branches) if branches else graph
        found = known[key] = insert_selects(left, shared=True) if residual == "select" else left
    return found


def find_slicing(graph: G, plan: Plan) -> Slicing[G]:
    """The proven slicing for a plan: the one that planning made, or made once for a plan from a file.

    Raises:
        PlanError: the plan belongs to another model.
        ProofError: it cannot be carried out on this graph.

    Where branches went, `put_constants` says what they added before the slicing is filled: until then it is 0, or what it was last.
    """
    known = _proven(graph)
    found = known.get(plan)
    if found is None or not _shares_weights(found.source, graph):
        found = known[plan] = _slicing_of(graph, plan)
    return found


def on_copy(slicing: Slicing[G], graph: G, plan: Plan) -> Slicing[G]:
    """A plan's slicing, for a copy of the graph that it is of: the same program, in which some parameters may have other values."""
    prepared = prepare(graph, plan.residual, plan.branches)
    return slicing if prepared is slicing.source else slicing.on(prepared, graph if plan.branches else None)


def _shares_weights(prepared: Graph, graph: Graph) -> bool:
    """Whether a form of a graph lies over the graph's own weights: `set_param` on the graph may have exchanged some."""
    if prepared is graph:
        return True
    pairs = [(prepared.params[name].data, value.data) for name, value in graph.params.items() if name in prepared.params]
    return all(a is b or (a is not None and b is not None and a.data_ptr() == b.data_ptr()) for a, b in pairs)


def _slicing_of(graph: G, plan: Plan) -> Slicing[G]:
    prepared = prepare(graph, plan.residual, plan.branches)
    groups = channel_groups(prepared)
    remove = _removed(plan, groups)
    if (remove & groups.pinned).any():
        group = int(np.flatnonzero(remove & groups.pinned)[0])
        raise PlanError(f"the plan removes channels that must stay: {groups.reasons[group]}", remedy="Make the plan again for this model.")
    try:
        return slice_channels(prepared, groups.labels, ~remove[groups.group], graph if plan.branches else None)
    except ProofError as error:  # planning proves what it makes: this plan was changed, or is another model's
        uneven = _uneven(groups, remove)
        what, where = (
            (f"it removes {uneven[1]} channels of its groups, which must lose equally many", uneven[0])
            if uneven
            else (error.what, error.where)
        )
        remedy = "Make the plan again for this model, or correct it there."
        raise ProofError(f"the plan cannot be carried out: {what}", where=where, remedy=remedy) from error


def put_constants(found: Slicing[G], plan: Plan, batches: Iterable[tuple[Any, ...]] | None = None, *, drop: bool = False) -> list[str]:
    """Put what the branches that went added on average into the source of a slicing, for `fill`; names of those of which nothing tells it.

    Args:
        found: the slicing.
        plan: the plan that it carries out.
        batches: what to measure it on; without them batch norm's statistics tell.
        drop: put 0, as if removed channels had been zero.
    """
    if found.origin is None:
        return []
    gone = chosen_branches(found.origin, plan.branches)
    if drop:
        zero = dict.fromkeys(plan.branches, torch.zeros((), dtype=torch.float64))
        return set_constants(found.source, gone, zero)
    return set_constants(found.source, gone, mean_outputs(found.origin, gone, batches))


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
    layers = {place_of(layer): layer for layer in groups.layers}
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
        remove[own_groups(groups, layer)[list(entry.removed)]] = True
    entries = {(entry.parameter, entry.axis): entry for entry in plan.layers}
    for place, layer in layers.items():
        stays = remove[own_groups(groups, layer)]
        stays[list(entries[place].removed) if place in entries else []] = False
        if stays.any():
            raise _disagreement(plan, groups, layer, int(np.flatnonzero(stays)[0]))
    return remove


def _disagreement(plan: Plan, groups: ChannelGroups, layer: Layer, stays: int) -> PlanError:
    """One layer keeps a channel, and another removes one of its group."""
    layers = {place_of(layer): layer for layer in groups.layers}
    group = own_groups(groups, layer)[stays]
    other, goes = next(
        (entry.name, position)
        for entry in plan.layers
        for position in entry.removed
        if own_groups(groups, layers[entry.parameter, entry.axis])[position] == group
    )
    return PlanError(
        f"the plan keeps channel {stays} of this layer and removes channel {goes} of {other}, which live and die together",
        where=layer.node.location,
        remedy="Remove both or neither, or make the plan again.",
    )


def place_of(layer: Layer) -> tuple[str, int]:
    """Return the name of a layer in a plan: its parameter, and the axis that makes the channels."""
    name, axis = layer.key
    return name, axis if isinstance(axis, int) else axis[0]


def own_groups(groups: ChannelGroups, layer: Layer) -> NDArray[np.int64]:
    """The group of each channel of a layer."""
    return groups.group[layer.labels.numpy()]
