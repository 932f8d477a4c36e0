"""The proven rewrite that a plan stands for: made anew on a graph, or refused with what does not fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from irtool.channels.groups import ChannelGroups, channel_groups
from irtool.channels.labels import Layer
from irtool.errors import PlanError, ProofError
from irtool.ir.graph import G
from irtool.pruning.branches import chosen_branches, cut, mean_outputs, set_constants
from irtool.pruning.plan import Plan, check_once, check_positions
from irtool.pruning.residual import insert_selects
from irtool.pruning.slicing import Rewrite, rewrite


def prepare(graph: G, residual: str, branches: Sequence[str] = ()) -> G:
    """The graph that a plan speaks of: without the branches that it takes out, with selections inserted for `residual="select"`.

    Raises:
        PlanError: the graph has no such branches.
    """
    if residual != "select" and not branches:
        return graph
    known: dict[tuple[str, ...], G] = graph.analyses.setdefault("prepared", {})
    key = (residual, *branches)
    if key not in known:
        left = cut(graph, branches) if branches else graph
        known[key] = insert_selects(left, shared=True) if residual == "select" else left
    return known[key]


def find_rewrite(graph: G, plan: Plan) -> Rewrite[G]:
    """The proven rewrite for a plan: the one that planning made, or made anew for a plan from a file.

    Raises:
        PlanError: the plan belongs to another model.
        ProofError: it cannot be carried out on this graph.

    Where branches went, `set_constants` says what they added before the rewrite is filled: until then it is 0, or what it was last.
    """
    cached = graph.analyses.pop("rewrite", None)
    if isinstance(cached, tuple) and cached[0] is plan:
        found = cached[1]
        assert isinstance(found, Rewrite)
        return found
    prepared = prepare(graph, plan.residual, plan.branches)
    groups = channel_groups(prepared)
    remove = _removed(plan, groups)
    if (remove & groups.pinned).any():
        group = int(np.flatnonzero(remove & groups.pinned)[0])
        raise PlanError(f"the plan removes channels that must stay: {groups.reasons[group]}", remedy="Make the plan again for this model.")
    try:
        return whole_rewrite(graph, plan, rewrite(prepared, groups.labels, ~remove[groups.group]))
    except ProofError as error:  # planning proves what it makes: this plan was changed, or is another model's
        uneven = _uneven(groups, remove)
        what, where = (
            (f"it removes {uneven[1]} channels of its groups, which must lose equally many", uneven[0])
            if uneven
            else (error.what, error.where)
        )
        remedy = "Make the plan again for this model, or correct it there."
        raise ProofError(f"the plan cannot be carried out: {what}", where=where, remedy=remedy) from error


def whole_rewrite(graph: G, plan: Plan, found: Rewrite[G]) -> Rewrite[G]:
    """A rewrite that knows the graph with the branches that the plan takes out."""
    found.origin = graph if plan.branches else None
    return found


def put_constants(found: Rewrite[G], plan: Plan, batches: Iterable[tuple[Any, ...]] | None = None, *, drop: bool = False) -> list[str]:
    """Put what the branches that went added on average into a rewrite that is not filled yet; names of those of which nothing tells it.

    Args:
        found: the rewrite.
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
