"""Planning: which channels go, and the proven rewrite that a plan stands for."""

from __future__ import annotations

import bisect
import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from irtool.channels.groups import ChannelGroups, Pin, channel_groups, group_channels
from irtool.channels.labels import Layer
from irtool.errors import PlanError, ProofError
from irtool.garbage import uncollected
from irtool.ir.graph import Graph
from irtool.progress import Progress, silent
from irtool.pruning.allocation import Limits, settle, wanted
from irtool.pruning.batches import batches_for, default_criterion, without_images
from irtool.pruning.budget import check_budget, check_engine_wish
from irtool.pruning.budgeted import Budgeted, check_limits
from irtool.pruning.criteria import CRITERIA, Batches, Criterion, Scores, check_finite, find_criterion, group_scores
from irtool.pruning.latency import plan_within
from irtool.pruning.plan import LayerPlan, Plan, Residual, Rounding, Scope, check_choice, check_names, check_values
from irtool.pruning.plan_rewrite import own_groups, place_of, prepare
from irtool.pruning.proof import PlaceError
from irtool.pruning.residual import stream_pins
from irtool.pruning.slicing import rewrite
from irtool.pruning.stages import check_stages, in_stages
from irtool.pruning.widths import FINER, in_steps, steps_of
from irtool.tensor_defaults import plain_tensors

__all__ = ["LayerPlan", "Plan", "check_options", "plan"]


_RATIO = 0.5


@uncollected()
@plain_tensors()
def plan(graph: Graph, criterion: str | Criterion | Callable[..., Scores] | None = None, ratio: float = _RATIO, scope: Scope = "global",
         residual: Residual = "couple", min_channels: int = 1, round_to: Rounding = "auto", ignore: str | Sequence[str] = (), seed: int = 0, *,
         budget: Mapping[str, float] | None = None, data: Any = None, limits: Mapping[str, float] | None = None, engine: str | None = None,
         threads: int = 1, progress: Progress = silent, stages: int = 1) -> Plan:  # fmt: skip
    """Decide which channels go. Every plan that is returned has been proven on the graph: `prune` cannot fail on it.

    Args:
        graph: a traced graph; it is not changed.
        criterion: a name in `CRITERIA`, or a function of (groups, seed) that scores every label. By default `fisher` where there is
            `data` (`activation` on an ONNX graph, which has no gradients), else `l1`. With a budget and no data `fisher` looks at noise,
            in a copy whose batch norms are told that it is what they were trained on, where there are batch norms.
        ratio: the fraction of channels to remove, 0 <= ratio < 1: of all prunable channels (`scope="global"`), of each layer (`"local"`),
            or of all layers together that are alike but for their sizes (`"isomorphic"`). What a condition below forbids stays. A
            budget takes its place: then `local` and `isomorphic` find the least ratio that keeps to it.
        residual: streams that additions join are pruned with all that write to them (`"couple"`), kept (`"keep"`), or kept
            and selected from before each batch norm that reads them (`"select"`, the published arrangement).
        min_channels: no layer keeps fewer (or fewer than it has).
        round_to: every layer that loses channels keeps a multiple of this, where it can. `"auto"` takes for each layer the multiple
            that engines like at its width, 4 to 16 (below 8 channels any number), and a finer one where that does not reach what is
            asked for. With a ratio as many channels go as single ones would make, as nearly as whole multiples allow.
        ignore: module paths, or one, whose layers stay as they are, sub-modules included.
        seed: for the random criterion, and for labels that a criterion draws.
        budget: in place of a ratio, what may be left: `macs`, `params`, `bytes`, one or several, each a share of the original (a
            number of at most 1) or a number. It holds exactly, as `cost` counts on the pruned graph; room for the biases that
            absorbing and reconstruction give to layers without one is counted in. And `latency`, a share or milliseconds: the time at
            batch 1 on this machine, in `engine`. It is planned by a table of layer times, which is kept, then measured on the whole
            net, and planned again until it takes at most 5 % more than asked for.
        data: images for criteria that see data: a tensor, shape (N, ...), or a list of batches. No labels are needed.
        limits: with a budget, the largest fraction of its channels that a layer may lose, by module path or pattern
            (`{"layer3.*": 0.7}`); of several that fit, the least.
        engine: what a latency budget is measured in, `onnxruntime` or `mnn`, with so many `threads`.
        progress: told about what a latency budget takes.
        stages: with a budget and data, the way there is gone in so many steps, equal as ratios of the cost: after each but the last the
            layers are refitted on the data, and channels are scored again in what is left. Two are worth their time below three
            quarters of the multiply-accumulates. The plan is one plan of this graph, which `reconstruct` carries out at once.

    Raises:
        PlanError: an option has an impossible value, or names a layer that does not exist; or no choice of channels keeps to the budget.
        DataError: the criterion needs data and there are none, or the graph does not run on them.
    """
    chosen = find_criterion(criterion if criterion is not None else default_criterion(graph, data, budget=budget is not None))
    check_values(ratio, scope, residual, min_channels, round_to, seed)
    if budget is not None and ratio != _RATIO:
        raise PlanError("a ratio and a budget", where="ratio", remedy="Give one of them: the budget decides how many channels go.")
    wish = {} if budget is None else check_budget(budget)
    if limits and not wish:
        raise PlanError("limits hold for budgets", where="limits", remedy="Give a budget; with a ratio, scope='local' takes equal shares.")
    check_engine_wish(wish, engine, threads)
    if criterion is None and data is None and chosen.reads != "parameters":
        graph, data = without_images(graph, int(seed))
    check_stages(stages, wish, data)
    if stages > 1 and engine is not None:
        raise PlanError("a latency is measured, not gone to in stages", where="stages", remedy="Leave stages out, or ask for macs.")
    batches = batches_for(graph, chosen, data)
    # Numbers of numpy's are welcome, and a plan is JSON data.
    made = Plan((), chosen.name, float(ratio), scope, residual, int(min_channels), round_to if round_to == "auto" else int(round_to), check_names("ignore", ignore), int(seed),
                wish, check_limits(limits or {}), int(stages))  # fmt: skip
    if stages > 1:
        return in_stages(
            graph,
            made,
            data,
            lambda stage: _Planner(stage.graph, prepare(stage.graph, residual), stage.options, chosen, batches, stage.widths).solve(),
        )
    prepared = prepare(graph, residual)
    planner = _Planner(graph, prepared, made, chosen, batches)
    if engine is None:
        return planner.solve()
    return plan_within(graph, planner._budgeted, planner.solve, prepared, engine, threads, progress)


def check_options(criterion: str, ratio: float, scope: str, residual: str, min_channels: int, round_to: Rounding, seed: int = 0) -> None:
    """Refuse impossible options before any work is done.

    Raises:
        PlanError: the option and its allowed values are named.
    """
    check_choice("criterion", criterion, CRITERIA)
    check_values(ratio, scope, residual, min_channels, round_to, seed)


@dataclass
class _Planner:
    graph: Graph
    prepared: Graph
    options: Plan
    criterion: Criterion
    batches: Batches
    widths: Mapping[tuple[str, int], int] = field(default_factory=dict)
    """Of each layer's channels, by its place: how many there were before an earlier stage took some."""
    pins: list[tuple[NDArray[np.int64], Pin]] = field(default_factory=list)
    together: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = field(default_factory=list)
    """Labels that go together so that each channel keeps its place."""
    wish: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    """The groups that the ratio asks for, before any condition."""

    notes: tuple[str, ...] = ()
    _scored: dict[bytes, Scores] = field(default_factory=dict)

    @cached_property
    def _budgeted(self) -> Budgeted:
        return Budgeted(self.graph, self.options, widths=self.widths)

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
            if (nameless := _nameless(groups)).size:
                pin = Pin("is balanced with channels that no layer makes", groups.labels.balances[0][0].location)
                groups = group_channels(labels, couple=couple, pins=[*pins, (nameless, pin)], together=self.together)
            scores = self._scores(groups)
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
            if self.options.budget and not self._budgeted.keeps(done.graph):
                continue
            made = self._describe(groups, scores, remove)
            self.graph.analyses["rewrite"] = (made, done)
            return made
        if self.options.budget:
            remedy = "Name the layers that cannot be followed in ignore=, and please report this model."
            raise PlanError("no choice of channels was proven that keeps to it", where="budget", remedy=remedy)
        return self._describe(groups, scores, np.zeros(groups.count, bool))

    def _scores(self, groups: ChannelGroups) -> Scores:
        """One score a group. Those of criteria that see data are kept while the groups are the same."""
        key = groups.group.tobytes() + groups.pinned.tobytes()
        if key not in self._scored:
            self._scored[key] = group_scores(groups, self.criterion, self.options.seed, self.batches)
            check_finite(groups, self.options.criterion)
        return self._scored[key]

    def _allocate(self, groups: ChannelGroups, scores: Scores) -> NDArray[np.bool_]:
        options = self.options
        if options.budget:
            self.wish = self._budgeted.allocate(groups, scores)
            self.notes = self._budgeted.notes
            return self.wish
        listed = np.zeros(groups.count, bool)
        for found in groups.owned:
            listed[found] = True

        def settled(ratio: float, steps: NDArray[np.int64] | None) -> NDArray[np.bool_]:
            # what no layer makes has no place in a plan, and would be back when it is read from a file
            wish = wanted(groups, scores, ratio, options.scope, inclusive=self.criterion.inclusive) & listed
            return settle(groups, scores, wish, Limits(options.min_channels, steps))

        self.wish = wanted(groups, scores, options.ratio, options.scope, inclusive=self.criterion.inclusive) & listed
        if options.round_to != "auto":
            return settled(options.ratio, steps_of(groups, options.round_to))
        remove, finer = in_steps(groups, settled, options.ratio)
        self.notes = (FINER.format("the ratio"),) if finer else ()
        return remove

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
            if place_of(layer) in layers:
                continue  # called again, or its weight is another layer's too: the same channels
            own = own_groups(groups, layer)
            gone = np.flatnonzero(remove[own])
            reason = ""
            pinned = np.flatnonzero(groups.pinned[own])
            if pinned.size:
                reason = str(groups.reasons[int(own[pinned[0]])])
                reason = reason if pinned.size == own.size else f"{pinned.size} channels stay: {reason}"
            elif np.isnan(scores[own]).all():
                reason = f"{self.options.criterion} has no score here"
            elif own.size > 1 and (own == own[0]).all():
                reason = f"all its channels are one group, which cannot go{_joined(groups, layer)}"
            elif not gone.size and self.wish[own].any():
                reason = self._unmet(groups, layer)
            layers[place_of(layer)] = LayerPlan(layer.node.location, *place_of(layer), own.size, tuple(gone.tolist()), reason)
        total = sum(layer.total for layer in layers.values())
        ratio = sum(len(layer.removed) for layer in layers.values()) / max(total, 1) if self.options.budget else self.options.ratio
        notes = _unseparated(groups, scores, remove) if self.criterion.name == "bn_scale" else ()
        return dataclasses.replace(self.options, layers=tuple(layers.values()), ratio=ratio, notes=(*self.notes, *notes))

    def _unmet(self, groups: ChannelGroups, layer: Layer) -> str:
        """Why a layer loses nothing though the ratio asks for some of its channels."""
        own = layer.labels.numpy()
        balanced = next((node for node, table in groups.labels.balances if np.isin(table.numpy(), own).any()), None)
        limits = [f"{name}={value}" for name in ("min_channels", "round_to") if (value := getattr(self.options, name)) != 1]
        if balanced is not None:
            return f"nothing can go that leaves {' and '.join(['all parts equally wide', *limits])} (at {balanced.location})"
        return f"nothing can go that leaves {' and '.join(limits) or 'the axes whole that its channels are split into'}"


_SEPARATED = 0.05
"""Sparse training leaves next to nothing of the scales that go; without it they hold a fifth and more of the sum."""


def _unseparated(groups: ChannelGroups, scores: Scores, remove: NDArray[np.bool_]) -> tuple[str, ...]:
    """That the scales do not tell which channels are needed, if so."""
    known = ~np.isnan(scores) & ~groups.pinned
    share = float(scores[known & remove].sum()) / max(float(scores[known].sum()), 1e-300)
    if share <= _SEPARATED:
        return ()
    return (
        f"bn_scale removes scales that hold {100 * share:.0f} % of the sum of all: this net was not trained to separate them "
        "(irtool.train.sparse does), and what goes is much like what stays; fisher with data=images tells them apart",
    )


def _nameless(groups: ChannelGroups) -> NDArray[np.int64]:
    """Labels in balanced families that no layer makes (a stored tensor's that is joined to channels). A plan cannot name them, so they
    must stay, or it would be another one when it is read."""
    members = np.concatenate([cell for balance in groups.balances for cell in balance.cells] or [np.zeros(0, np.int64)])
    lost = np.setdiff1d(members, np.concatenate(groups.owned or [members]))
    return np.flatnonzero(np.isin(groups.group, lost))


def _joined(groups: ChannelGroups, layer: Layer) -> str:
    """Where the first two of a layer's groups that became one met, for people; nothing if that was no single meeting."""
    meetings, own, size = groups.labels.meetings, layer.labels.numpy(), groups.group.size
    ends = [np.stack([part.reshape(-1) for part in np.broadcast_arrays(a.numpy(), b.numpy())]) for _, a, b in meetings]

    def joined(count: int) -> bool:
        pairs = np.concatenate([np.empty((2, 0), np.int64), *ends[:count]], 1)
        pairs = pairs[:, (pairs >= 0).all(0)]
        links = coo_array((np.ones(pairs.shape[1], bool), (pairs[0], pairs[1])), shape=(size, size))
        return np.unique(connected_components(links, directed=False)[1][own]).size < own.size

    if not joined(len(meetings)):
        return ""
    first = bisect.bisect_left(range(len(meetings) + 1), True, key=joined) - 1
    return f": they meet (at {meetings[first][0].location})"
