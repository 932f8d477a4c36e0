"""Planning: which channels go, and the proven slicing that a plan stands for."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from irtool.errors import DataError, PlanError
from irtool.garbage import uncollected
from irtool.ir.graph import Graph
from irtool.progress import Progress, silent
from irtool.pruning.allocation.budget import check_budget, check_engine_request
from irtool.pruning.allocation.budgeted import check_allocator, check_limits
from irtool.pruning.allocation.latency import plan_within
from irtool.pruning.branches import chosen_branches, mean_outputs, set_constants
from irtool.pruning.choices import LEAST, Choice, check_depth
from irtool.pruning.criteria.batches import batches_for, default_criterion, without_images
from irtool.pruning.criteria.criteria import Batches, Criterion, Scores, check_criterion, find_criterion
from irtool.pruning.plan import (
    Allocator,
    GroupKind,
    LayerPlan,
    Plan,
    ResidualWish,
    Rounding,
    Scope,
    check_choice,
    check_names,
    check_values,
)
from irtool.pruning.reconstruct.images import image_batches, require_information, split_to_fit
from irtool.pruning.slicing.plan_slicing import Planned, prepare
from irtool.pruning.solver import Solver
from irtool.pruning.stages import CHUNK, IMAGES, check_stages, in_stages
from irtool.tensor_defaults import plain_tensors

__all__ = ["LayerPlan", "Plan", "check_options", "plan"]


_RATIO = 0.5


@uncollected()
@plain_tensors()
def plan(graph: Graph, criterion: str | Criterion | Callable[..., Scores] | None = None, ratio: float = _RATIO, scope: Scope = "global",
         residual: ResidualWish = "auto", min_channels: int = 1, round_to: Rounding = "auto", ignore: str | Sequence[str] = (), seed: int = 0, *,
         budget: Mapping[str, float] | None = None, data: Any = None, limits: Mapping[str, float] | None = None, engine: str | None = None,
         threads: int = 1, progress: Progress = silent, stages: int = 1, groups: GroupKind = "auto",
         depth: bool | Sequence[str] = False, allocator: Allocator = "greedy") -> Plan:  # fmt: skip
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
            and selected from before each batch norm that reads them (`"select"`, the published arrangement). `"auto"`: with a budget
            of another kind than latency and at least 32 images, what loses less once it is refitted, by trial on images held back;
            else `"couple"`.
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
    chosen = find_criterion(criterion if criterion is not None else default_criterion(graph, data, budget=budget is not None))
    wish = _checked_request(ratio, scope, residual, min_channels, round_to, seed, budget, limits)
    check_engine_request(wish, engine, threads)
    shown, seen = data is not None, graph  # noise is good enough to score channels by, and no reason to choose between plans
    if criterion is None and not shown and chosen.reads != "parameters":
        seen, data = without_images(graph, int(seed))
    _check_ways(wish, scope, data, engine, stages, groups, allocator)
    if data is not None and (chosen.reads != "parameters" or wish):
        data = image_batches(seen, data, sys.maxsize, CHUNK)  # once: it may be a generator
        require_information(data)
    batches = batches_for(seen, chosen, data)
    # Numbers of numpy's are welcome, and a plan is JSON data.
    options = Plan((), chosen.name, float(ratio), scope, "couple" if residual == "auto" else residual, int(min_channels),
                   round_to if round_to == "auto" else int(round_to), check_names("ignore", ignore), int(seed), wish,
                   check_limits(limits or {}), int(stages), groups, allocator)  # fmt: skip
    options = dataclasses.replace(options, branches=check_depth(seen, depth, options, data if shown else None))
    job = _Job(seen, chosen, data, engine, threads, progress)
    streams = residual == "auto" and engine is None and bool(wish) and shown
    return job.chosen(options, batches, streams=streams, depth=depth is True).remembered(graph)


def _checked_request(ratio: float, scope: str, residual: str, min_channels: int, round_to: Rounding, seed: int,
                  budget: Mapping[str, float] | None, limits: Mapping[str, float] | None) -> Mapping[str, float]:  # fmt: skip
    """Read the amount of each cost that may be left; empty where a ratio is asked for. Refuses what no plan can have."""
    check_values(ratio, scope, "couple" if residual == "auto" else residual, min_channels, round_to, seed)
    if budget is not None and ratio != _RATIO:
        raise PlanError("a ratio and a budget", where="ratio", remedy="Give one of them: the budget decides how many channels go.")
    wish = {} if budget is None else check_budget(budget)
    if limits and not wish:
        raise PlanError("limits hold for budgets", where="limits", remedy="Give a budget; with a ratio, scope='local' takes equal shares.")
    return wish


def _check_ways(wish: Mapping[str, float], scope: Scope, data: Any, engine: str | None, stages: int, groups: str, allocator: str) -> None:
    """Refuse ways to a budget that cannot be gone with these data."""
    check_stages(stages, wish, data)
    check_choice("groups", groups, get_args(GroupKind))
    check_allocator(allocator, wish, scope, data)
    if stages > 1 and engine is not None:
        raise PlanError("a latency is measured, not gone to in stages", where="stages", remedy="Leave stages out, or ask for macs.")


def check_options(criterion: str, ratio: float, scope: str, residual: str, min_channels: int, round_to: Rounding, seed: int = 0) -> None:
    """Refuse impossible options before any work is done.

    Raises:
        PlanError: the option and its allowed values are named.
    """
    check_criterion(criterion)
    check_values(ratio, scope, residual, min_channels, round_to, seed)


@dataclass(frozen=True)
class _Job:
    """Plans one graph by any options."""

    graph: Graph
    criterion: Criterion
    data: Any
    engine: str | None
    threads: int
    progress: Progress

    def chosen(self, options: Plan, batches: Batches, *, streams: bool, depth: bool) -> Planned[Graph]:
        """Plan, after trials of what was left open.

        Args:
            options: the plan's, without layers.
            batches: what the criterion looks at.
            streams: whether `residual` is open.
            depth: whether branches may go.
        """
        choice = Choice.on(self.graph, self.data, self.solve, self.progress) if depth or streams else None
        if choice is None and depth:
            remedy = "Give more, or name the branches."
            raise DataError(f"fewer than {LEAST} images, too few to choose branches by", where="data", remedy=remedy)
        if choice is None:
            return self.solve(options, batches)
        found = self.solve(choice.of(options, streams=streams, depth=depth), batches)
        return found.saying(notes=(*found.plan.notes, *choice.notes))

    def solve(self, options: Plan, batches: Batches) -> Planned[Graph]:
        """Plan and prove."""
        graph = self.graph
        if options.stages > 1:
            return in_stages(
                graph, options, batches or self.data, lambda stage: self._solver(stage.graph, stage.options, batches, stage.widths).solve()
            )
        solver = self._solver(graph, options, batches, {})
        if self.engine is None:
            return solver.solve()
        ways = [one.way() for one in solver.by_kind()]
        found = plan_within(graph, ways, solver.prepared, self.engine, self.threads, self.progress)
        return found.saying(groups=options.groups)

    def _solver(self, graph: Graph, options: Plan, batches: Batches, widths: Mapping[tuple[str, int], int]) -> Solver:
        prepared = prepare(graph, options.residual, options.branches)
        if options.branches:
            gone = chosen_branches(graph, options.branches)
            set_constants(prepared, gone, mean_outputs(graph, gone, batches or None))
        images = batches if options.allocator == "measured" else None
        if images is not None and not images:  # the criterion looks at none
            images = split_to_fit(graph, image_batches(graph, self.data, IMAGES, CHUNK))
        return Solver(graph, prepared, options, self.criterion, batches, widths, images)
