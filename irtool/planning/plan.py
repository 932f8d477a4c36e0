"""The plan: which channels go. Data that can be printed, saved, replayed."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from irtool.analysis.groups import ChannelGroups, Pin, channel_groups, group_channels
from irtool.collection import uncollected
from irtool.errors import FileError, PlanError, ProofError
from irtool.files import replacing
from irtool.ir.graph import G, Graph
from irtool.planning.allocation import Limits, settle, wanted
from irtool.planning.criteria import CRITERIA, Scores, check_finite, group_scores
from irtool.planning.residual import insert_selects, stream_pins
from irtool.planning.slicing import Rewrite, rewrite

Scope = Literal["global", "local"]
Residual = Literal["couple", "select", "keep"]
FORMAT = 1


@dataclass(frozen=True)
class LayerPlan:
    """One layer in a plan.

    Attributes:
        name: module path (or node name) of the layer that makes the channels.
        parameter: the parameter that holds them, and `axis` the axis.
        total: channels before.
        removed: positions that go, sorted.
        reason: why it was left alone, wholly or in part; empty if nothing held it back.
    """

    name: str
    parameter: str
    axis: int
    total: int
    removed: tuple[int, ...]
    reason: str = ""

    @property
    def kept(self) -> int:
        """Channels after."""
        return self.total - len(self.removed)


@dataclass(frozen=True)
class Plan:
    """Which channels of which layers go, and how that was decided.

    Attributes:
        layers: every layer that makes channels, in graph order.
        criterion, ratio, scope, residual, min_channels, round_to, ignore, seed: the options of `plan`.
    """

    layers: tuple[LayerPlan, ...]
    criterion: str = "l1"
    ratio: float = 0.5
    scope: Scope = "global"
    residual: Residual = "couple"
    min_channels: int = 1
    round_to: int = 1
    ignore: tuple[str, ...] = ()
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        layers = [{**vars(layer), "removed": list(layer.removed)} for layer in self.layers]
        return {"format": FORMAT, **vars(self), "ignore": list(self.ignore), "layers": layers}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """The inverse of `to_dict`.

        Raises:
            PlanError: the data is not a plan, or of a newer format.
        """
        if data.get("format") != FORMAT:
            raise PlanError(
                f"plan format {data.get('format')!r}, expected {FORMAT}", remedy="Make the plan again with this version of irtool."
            )
        try:
            layers = tuple(LayerPlan(**{**layer, "removed": tuple(map(int, layer["removed"]))}) for layer in data["layers"])
            rest = {key: value for key, value in data.items() if key not in ("format", "layers", "ignore")}
            return cls(layers, ignore=tuple(data.get("ignore", ())), **rest)
        except (TypeError, KeyError, ValueError) as error:
            raise PlanError(f"not a plan ({error})", remedy="Pass a file that Plan.to_json wrote.") from error

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON."""
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan.

        Raises:
            FileError: the file is missing or is not JSON.
            PlanError: it is JSON, but no plan.
        """
        try:
            data = json.loads(Path(path).read_text())
        except OSError as error:
            raise FileError(f"cannot read the plan ({error.strerror})", where=str(path), remedy="Check the path.") from error
        except ValueError as error:
            raise FileError("not JSON, or cut off", where=str(path), remedy="Pass a file that Plan.to_json wrote.") from error
        if not isinstance(data, dict):
            raise PlanError("not a plan", where=str(path), remedy="Pass a file that Plan.to_json wrote.")
        return cls.from_dict(data)

    @property
    def removed(self) -> int:
        """Channels removed over all layers."""
        return sum(len(layer.removed) for layer in self.layers)

    def summary(self) -> str:
        """A line a layer: kept of total, or why not."""
        width = max((len(layer.name) for layer in self.layers), default=0)
        lines = [
            f"{layer.name:<{width}}  {layer.kept:>5} of {layer.total:<5}{'  ' + layer.reason if layer.reason else ''}".rstrip()
            for layer in self.layers
        ]
        total = sum(layer.total for layer in self.layers)
        lines.append(
            f"{'total':<{width}}  {total - self.removed:>5} of {total:<5}  {self.criterion}, {self.scope}, ratio {self.ratio:g}, residual {self.residual}"
        )
        return "\n".join(lines)


@uncollected()
def plan(graph: Graph, criterion: str = "l1", ratio: float = 0.5, scope: Scope = "global", residual: Residual = "couple", min_channels: int = 1,
         round_to: int = 1, ignore: Sequence[str] = (), seed: int = 0) -> Plan:  # fmt: skip
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
        ignore: module paths whose layers stay as they are, sub-modules included.
        seed: for the random criterion.

    Raises:
        PlanError: an option has an impossible value, or names a layer that does not exist.
    """
    check_options(criterion, ratio, scope, residual, min_channels, round_to)
    made = Plan((), criterion, ratio, scope, residual, min_channels, round_to, tuple(ignore), seed)
    prepared = prepare(graph, residual)
    return _Planner(graph, prepared, made).solve()


def check_options(criterion: str, ratio: float, scope: str, residual: str, min_channels: int, round_to: int) -> None:
    """Refuse impossible options before any work is done.

    Raises:
        PlanError: the option and its allowed values are named.
    """
    choices = {
        "criterion": (criterion, tuple(CRITERIA)),
        "scope": (scope, ("global", "local")),
        "residual": (residual, ("couple", "select", "keep")),
    }
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise PlanError(f"{name} {value!r} does not exist", remedy=f"Choose one of {', '.join(allowed)}.")
    if not 0 <= ratio < 1:
        raise PlanError(f"ratio {ratio:g} is not a fraction of channels to remove", remedy="Give 0 <= ratio < 1, e.g. 0.5 to remove half.")
    if min_channels < 1 or round_to < 1:
        raise PlanError(f"min_channels {min_channels} and round_to {round_to} must be at least 1", remedy="Leave them out for no limit.")


def prepare(graph: G, residual: str) -> G:
    """The graph that a plan with this `residual` speaks of: with selections inserted for `"select"`."""
    if residual != "select":
        return graph
    if "selected" not in graph.analyses:
        graph.analyses["selected"] = insert_selects(graph)
    found: G = graph.analyses["selected"]
    return found


@dataclass
class _Planner:
    graph: Graph
    prepared: Graph
    options: Plan
    pins: list[tuple[NDArray[np.int64], Pin]] = field(default_factory=list)

    def solve(self) -> Plan:
        """Plan, prove, and where the proof fails fall back: couple balanced families, then pin what cannot be proven."""
        labels = channel_groups(self.prepared).labels
        base = stream_pins(labels, self.options.residual) + self._ignored()
        for attempt in range(12):
            pins = base + self.pins
            groups = group_channels(labels, couple=attempt > 0, pins=pins) if attempt or pins else channel_groups(self.prepared)
            scores = group_scores(groups, self.options.criterion, self.options.seed)
            check_finite(groups, self.options.criterion)
            remove = self._allocate(groups, scores)
            try:
                done = rewrite(self.prepared, labels, ~remove[groups.group] if groups.count else np.zeros(0, bool))
            except ProofError as error:
                if attempt > 0 or not groups.balances:
                    self._pin_place(error, groups, remove)
                continue
            made = self._describe(groups, scores, remove)
            self.graph.analyses["rewrite"] = (made, done)
            return made
        return self._describe(groups, scores, np.zeros(groups.count, bool))

    def _allocate(self, groups: ChannelGroups, scores: Scores) -> NDArray[np.bool_]:
        options = self.options
        wish = wanted(groups, scores, options.ratio, options.scope, inclusive=options.criterion == "bn_scale")
        return settle(groups, scores, wish, Limits(options.min_channels, options.round_to))

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
        layers = []
        for layer in groups.layers:
            labels = layer.labels.numpy()
            own = groups.group[labels]
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
            axis = layer.key[1] if isinstance(layer.key[1], int) else layer.key[1][0]
            layers.append(LayerPlan(layer.node.location, layer.key[0], axis, labels.size, tuple(gone.tolist()), reason))
        return dataclasses.replace(self.options, layers=tuple(layers))


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
    layers = {(layer.key[0], layer.key[1] if isinstance(layer.key[1], int) else layer.key[1][0]): layer for layer in groups.layers}
    remove = np.zeros(groups.count, bool)
    for entry in plan.layers:
        layer = layers.get((entry.parameter, entry.axis))
        if layer is None or layer.labels.numel() != entry.total:
            have = "no such layer" if layer is None else f"{layer.labels.numel()} channels"
            raise PlanError(
                f"the plan speaks of {entry.total} channels, this model has {have}",
                where=entry.name,
                remedy="Use the plan with the model it was made for.",
            )
        if entry.removed and not 0 <= min(entry.removed) <= max(entry.removed) < entry.total:
            raise PlanError("the plan removes channels that do not exist", where=entry.name, remedy="Make the plan again.")
        remove[groups.group[layer.labels.numpy()[list(entry.removed)]]] = True
    if (remove & groups.pinned).any():
        group = int(np.flatnonzero(remove & groups.pinned)[0])
        raise PlanError(f"the plan removes channels that must stay: {groups.reasons[group]}", remedy="Make the plan again for this model.")
    return rewrite(prepared, groups.labels, ~remove[groups.group])
