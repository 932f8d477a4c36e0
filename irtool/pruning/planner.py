"""Planning: which channels go, and the proven rewrite that a plan stands for."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from irtool.channels.groups import ChannelGroups, Pin, channel_groups, group_channels
from irtool.errors import PlanError, ProofError
from irtool.garbage import uncollected
from irtool.ir.graph import Graph
from irtool.progress import Progress, silent
from irtool.pruning.allocation import Limits, settle, wanted
from irtool.pruning.batches import batches_for, default_criterion
from irtool.pruning.branches import chosen_branches, mean_outputs, set_constants
from irtool.pruning.budget import check_budget, check_engine_wish
from irtool.pruning.budgeted import Budgeted, check_allocator, check_limits
from irtool.pruning.choices import Choice, check_depth
from irtool.pruning.criteria import CRITERIA, Batches, Criterion, Scores, check_finite, find_criterion, group_scores
from irtool.pruning.group_kinds import channels_at_once, whole_groups
from irtool.pruning.latency import Way, plan_within
from irtool.pruning.plan import Allocator, GroupKind, LayerPlan, Plan, Residual, Rounding, Scope, check_choice, check_names, check_values
from irtool.pruning.plan_rewrite import own_groups, place_of, prepare, whole_rewrite
from irtool.pruning.proof import PlaceError
from irtool.pruning.reasons import reason_of, unseparated
from irtool.pruning.reconstruct.images import image_batches, split_to_fit
from irtool.pruning.residual import stream_pins
from irtool.pruning.sensitivity import sensitivity
from irtool.pruning.slicing import rewrite
from irtool.pruning.stages import CHUNK, IMAGES, check_stages, in_stages
from irtool.pruning.widths import FINER, in_steps, steps_of
from irtool.tensor_defaults import plain_tensors

__all__ = ["LayerPlan", "Plan", "check_options", "plan"]


_RATIO = 0.5


@uncollected()
@plain_tensors()
def plan(graph: Graph, criterion: str | Criterion | Callable[..., Scores] | None = None, ratio: float = _RATIO, scope: Scope = "global",
         residual: Residual | Literal["auto"] = "couple", min_channels: int = 1, round_to: Rounding = "auto", ignore: str | Sequence[str] = (), seed: int = 0, *,
         budget: Mapping[str, float] | None = None, data: Any = None, limits: Mapping[str, float] | None = None, engine: str | None = None,
         threads: int = 1, progress: Progress = silent, stages: int = 1, groups: GroupKind = "auto",
         depth: bool | Sequence[str] = False, allocator: Allocator = "greedy") -> Plan:  # fmt: skip
    """Decide which channels go. Every plan that is returned has been proven on the graph: `prune` cannot fail on it.

    Args:
        graph: a traced graph; it is not changed.
        criterion: a name in `CRITERIA`, or a function of (groups, seed) that scores every label. By default `fisher` where there is
            `data` (`activation` on an ONNX graph, which has no gradients), else `l1`.
        ratio: the fraction of channels to remove, 0 <= ratio < 1: of all prunable channels (`scope="global"`), of each layer (`"local"`),
            or of all layers together that are alike but for their sizes (`"isomorphic"`). What a condition below forbids stays. A
            budget takes its place: then `local` and `isomorphic` find the least ratio that keeps to it.
        residual: streams that additions join are pruned with all that write to them (`"couple"`), kept (`"keep"`), or kept
            and selected from before each batch norm that reads them (`"select"`, the published arrangement). `"auto"`: with a budget and
            data, what loses less once it is refitted, by trial on images held back; else `"couple"`.
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
        groups: what grouped convolutions lose: whole groups, so that those that stay keep their width (`"whole"`), or equally many
            channels of each group (`"even"`). `"auto"`: whole groups with a budget and `round_to="auto"` where groups are narrower
            than 32 channels, which no narrower width makes faster; with a latency budget what loses less by the engine's times.
        depth: whether branches of additions may go as a whole (`y = x + f(x)` becomes `y = x + c`), with all layers that only they need.
            They are tried in the order of what each alone loses for what it saves, refitted, and go as long as that loses less than
            channels elsewhere would. Or the names of those that go.
        allocator: how a budget is shared among families of layers: by the scores, channel by channel (`"greedy"`), or by what pruning each
            family alone was measured to lose on the data, and an integer program (`"measured"`, global scope).

    Raises:
        PlanError: an option has an impossible value, or names a layer that does not exist; or no choice of channels keeps to the budget.
        DataError: the criterion needs data and there are none, or the graph does not run on them.
    """
    chosen = find_criterion(criterion if criterion is not None else default_criterion(graph, data))
    check_values(ratio, scope, "couple" if residual == "auto" else residual, min_channels, round_to, seed)
    if budget is not None and ratio != _RATIO:
        raise PlanError("a ratio and a budget", where="ratio", remedy="Give one of them: the budget decides how many channels go.")
    wish = {} if budget is None else check_budget(budget)
    if limits and not wish:
        raise PlanError("limits hold for budgets", where="limits", remedy="Give a budget; with a ratio, scope='local' takes equal shares.")
    check_engine_wish(wish, engine, threads)
    check_stages(stages, wish, data)
    check_choice("groups", groups, get_args(GroupKind))
    check_allocator(allocator, wish, scope, data)
    if stages > 1 and engine is not None:
        raise PlanError("a latency is measured, not gone to in stages", where="stages", remedy="Leave stages out, or ask for macs.")
    batches = batches_for(graph, chosen, data)
    # Numbers of numpy's are welcome, and a plan is JSON data.
    made = Plan((), chosen.name, float(ratio), scope, "couple" if residual == "auto" else residual, int(min_channels),
                round_to if round_to == "auto" else int(round_to), check_names("ignore", ignore), int(seed), wish,
                check_limits(limits or {}), int(stages), groups, allocator)  # fmt: skip
    made = dataclasses.replace(made, branches=check_depth(graph, depth, made, data))
    job = _Job(graph, chosen, data, engine, threads, progress)
    if depth is not True and (residual != "auto" or engine is not None or not wish or data is None):
        return job.solve(made, batches)
    choice = Choice(graph, data, job.solve, progress)
    made = choice.of(made, streams=residual == "auto", depth=depth is True)
    found = job.solve(made, batches)
    return job.noted(found, choice.notes)


def check_options(criterion: str, ratio: float, scope: str, residual: str, min_channels: int, round_to: Rounding, seed: int = 0) -> None:
    """Refuse impossible options before any work is done.

    Raises:
        PlanError: the option and its allowed values are named.
    """
    check_choice("criterion", criterion, CRITERIA)
    check_values(ratio, scope, residual, min_channels, round_to, seed)


def _way(planner: _Planner) -> Way:
    return Way(planner._budgeted, planner.solve, planner.loss, planner.whole)


@dataclass(frozen=True)
class _Job:
    """Plans one graph by any options."""

    graph: Graph
    criterion: Criterion
    data: Any
    engine: str | None
    threads: int
    progress: Progress

    def solve(self, options: Plan, batches: Batches) -> Plan:
        """Plan and prove."""
        graph = self.graph
        if options.stages > 1:
            return in_stages(
                graph, options, self.data, lambda stage: self._planner(stage.graph, stage.options, batches, stage.widths).solve()
            )
        planner = self._planner(graph, options, batches, {})
        if self.engine is None:
            return planner.solve()
        ways = [_way(one) for one in planner.by_kind()]
        found = plan_within(graph, ways, planner.prepared, self.engine, self.threads, self.progress)
        return dataclasses.replace(found, groups=options.groups)

    def _planner(self, graph: Graph, options: Plan, batches: Batches, widths: Mapping[tuple[str, int], int]) -> _Planner:
        prepared = prepare(graph, options.residual, options.branches)
        if options.branches:
            gone = chosen_branches(graph, options.branches)
            set_constants(prepared, gone, mean_outputs(graph, gone, batches or None))
        images = batches if options.allocator == "measured" else None
        if images is not None and not images:  # the criterion looks at none
            images = split_to_fit(graph, image_batches(graph, self.data, IMAGES, CHUNK))
        return _Planner(graph, prepared, options, self.criterion, batches, widths, images)

    def noted(self, plan: Plan, notes: tuple[str, ...]) -> Plan:
        """The plan with more to say; its rewrite goes with it."""
        found = dataclasses.replace(plan, notes=(*plan.notes, *notes))
        known = self.graph.analyses.get("rewrite")
        if isinstance(known, tuple) and known[0] is plan:
            self.graph.analyses["rewrite"] = (found, known[1])
        return found


@dataclass
class _Planner:
    graph: Graph
    prepared: Graph
    options: Plan
    criterion: Criterion
    batches: Batches
    widths: Mapping[tuple[str, int], int] = field(default_factory=dict)
    """Of each layer's channels, by its place: how many there were before an earlier stage took some."""
    images: Batches | None = None
    """What families are measured on, if they are."""
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

    @cached_property
    def _budgeted(self) -> Budgeted:
        images = self.images
        measure = None if images is None else lambda groups, stacks, room: sensitivity(groups, stacks, room, images)
        return Budgeted(self.graph, self.options, widths=self.widths, measure=measure)

    def by_kind(self) -> list[_Planner]:
        """This planner, or one for whole groups and one for channels of each where that is left open."""
        if self.options.groups != "auto" or not self.whole:
            return [self]
        kinds: tuple[GroupKind, ...] = ("whole", "even")
        return [dataclasses.replace(self, options=dataclasses.replace(self.options, groups=kind), _scored={}) for kind in kinds]

    def loss(self) -> float:
        """What the scores expect to lose by the next allocation, before it is proven."""
        labels = channel_groups(self.prepared).labels
        groups = group_channels(labels, pins=stream_pins(labels, self.options.residual) + self._ignored(), whole=self.whole)
        scores = self._scores(groups)
        return float(np.nansum(self._weighed(groups, scores)[self._allocate(groups, scores)]))

    def solve(self) -> Plan:
        """Plan, prove, and where the proof fails fall back: keep places, leave groups whole, couple balanced families, then pin what cannot
        be proven."""
        labels = channel_groups(self.prepared).labels
        base = stream_pins(labels, self.options.residual) + self._ignored()
        couple, whole = False, self.whole
        for attempt in range(12):
            pins = base + self.pins
            groups = channel_groups(self.prepared)
            if attempt or pins or whole:
                groups = group_channels(labels, couple=couple, pins=pins, together=self.together, whole=whole)
            if (nameless := _nameless(groups)).size:
                pin = Pin("is balanced with channels that no layer makes", groups.labels.balances[0][0].location)
                groups = group_channels(labels, couple=couple, pins=[*pins, (nameless, pin)], together=self.together, whole=whole)
            scores = self._scores(groups)
            remove = self._allocate(groups, scores)
            try:
                done = rewrite(self.prepared, labels, ~remove[groups.group] if groups.count else np.zeros(0, bool))
            except PlaceError as error:
                self.together += error.pairs
                continue
            except ProofError as error:
                if whole:
                    whole = frozenset()
                    continue
                if couple or not groups.balances:
                    self._pin_place(error, groups, remove)
                couple = True
                continue
            if self.options.budget and not self._budgeted.keeps(done.graph):
                continue
            made = self._describe(groups, scores, remove)
            self.graph.analyses["rewrite"] = (made, whole_rewrite(self.graph, made, done))
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
            reason = reason_of(groups, scores, layer, asked=bool(self.wish[own].any()), gone=bool(gone.size), options=vars(self.options))
            layers[place_of(layer)] = LayerPlan(layer.node.location, *place_of(layer), own.size, tuple(gone.tolist()), reason)
        total = sum(layer.total for layer in layers.values())
        ratio = sum(len(layer.removed) for layer in layers.values()) / max(total, 1) if self.options.budget else self.options.ratio
        notes = unseparated(groups, scores, remove) if self.criterion.name == "bn_scale" else ()
        return dataclasses.replace(self.options, layers=tuple(layers.values()), ratio=ratio, notes=(*self.notes, *notes))


def _nameless(groups: ChannelGroups) -> NDArray[np.int64]:
    """Labels in balanced families that no layer makes (a stored tensor's that is joined to channels). A plan cannot name them, so they
    must stay, or it would be another one when it is read."""
    members = np.concatenate([cell for balance in groups.balances for cell in balance.cells] or [np.zeros(0, np.int64)])
    lost = np.setdiff1d(members, np.concatenate(groups.owned or [members]))
    return np.flatnonzero(np.isin(groups.group, lost))
