"""Options of a compression: arguments of `irtool.compress`, flags of the command, in one place."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from irtool.engines.onnxruntime.export import check_opset
from irtool.engines.threads import FEWER_THREADS, MOST_THREADS
from irtool.errors import OptionError
from irtool.passes.prune import Constants
from irtool.pruning.allocation.budget import LATENCY, check_budget, check_engine_request
from irtool.pruning.allocation.budgeted import check_limits
from irtool.pruning.plan import Allocator, GroupKind, Plan, ResidualWish, Rounding, Scope
from irtool.pruning.planner import check_options
from irtool.workflows.compress.search import Bound
from irtool.workflows.compress.settings import Settings
from irtool.workflows.loading.criteria import criterion_name

IMAGES = 128
"""Refitted on. More gain next to nothing."""
LARGEST_SEED = (1 << 63) - 1
"""The largest seed that torch's generators take."""


@dataclass(frozen=True)
class CompressOptions:
    """Options of what to remove, and how it is written and timed.

    Args:
        ratio: The fraction of channels to remove, 0 to below 1; default 0.5.
        budget: In place of a ratio, what may be left: shares of the original up to 1, or numbers, by macs, params, bytes, latency (in ms).
        stages: With a budget and --data, score channels again so many times on the way there, in the refitted net. By default 2 are
            tried where that takes seconds. Kept only if it gains on training images that were held back.
        limits: With a budget, the largest part of its channels that a layer may lose, by name or pattern.
        criterion: How channels are ranked: l1, l2, fpgm, lamp, bn_scale, random; or from training images: fisher, hessian,
            taylor, activation, apoz; or file.py:NAME, a function of (groups, seed) of your own. By default fisher for a budget with --data, else l1.
        scope: Rank over all layers, in each, or among those that are alike but for their sizes.
        residual: Residual streams: select from them, couple all that write to them, or keep them; auto: for a budget with --data what loses
            less, by trial, else couple.
        constants: What removed channels emit on average: into the next bias, or dropped as published.
        calibrate: Measure those averages on so many training images; 0: batch norm's statistics tell.
        reconstruct: Refit every layer on 128 training images, without labels, to what the original gave; without --data on noise, by the
            statistics of batch norms. The default, unless --constants or --calibrate is given, or there is neither.
        distil: After refitting, let the whole net follow the original's outputs, without labels, on up to 8,192 training images, each looked
            at so many times. It takes as long as training does; 4 suits. By default once, with a budget and --data, where that takes about
            a minute at most. What gains nothing on images held back is undone.
        round_to: Keep a multiple of this many channels in each layer; auto: what engines like at its width.
        groups: What grouped convolutions lose: whole groups, or equally many channels of each (even); auto: what suits budget and widths.
        depth: For a budget with --data, take out whole residual branches too where that loses less, by trial.
        allocator: How a budget is shared among layers: greedy, by scores; or measured, by what pruning each alone was measured to lose.
        engine: What a latency budget is measured in: onnxruntime or mnn.
        min_channels: Keep at least so many channels in each layer.
        ignore: A layer or module to leave alone; may be repeated.
        seed: For the random criterion.
        opset: ONNX operator set, 11 to 26; an .onnx file keeps its own.
        runs: Timed runs of each model in each engine.
        threads: Threads of each engine while it is timed.
        max_drop: How many points of accuracy may be lost. Budgets are tried, and trained on where refitting alone loses more, until
            that holds; without a budget the smallest that holds is looked for. Needs --data.
        epochs: With --max-drop, the most that one model is trained; 0 trains nothing.
        minutes: With --max-drop, for all training together.
        plan: Carry out this plan, a plan.json of an earlier run, in place of making one.
        allow_unchecked: Accept steps that no reference in numbers exists for, on the proof by labels alone.
    """

    ratio: float | None = None
    budget: Mapping[str, float] | None = None
    limits: Mapping[str, float] | None = None
    stages: int | None = None
    criterion: str | None = None
    scope: Scope = "global"
    residual: ResidualWish = "auto"
    constants: Constants | None = None
    calibrate: int | None = None
    reconstruct: bool | None = None
    distil: int | None = None
    round_to: Rounding = "auto"
    groups: GroupKind = "auto"
    depth: bool = False
    allocator: Allocator = "greedy"
    engine: str | None = None
    min_channels: int = 1
    ignore: tuple[str, ...] = ()
    seed: int = 0
    opset: int = 17
    runs: int = 50
    threads: int = 1
    max_drop: float | None = None
    epochs: int = 10
    minutes: float = 15.0
    plan: str | None = None
    allow_unchecked: bool = False

    def settings(self, *, data: bool) -> Settings:
        """Return the settings of the work itself.

        Args:
            data: whether there are images.

        Raises:
            OptionError: a value that can never work, or two that do not go together.
        """
        self._require_images(data)
        self._check_together()
        self._check_numbers()
        plan = self._plan()
        refits = self.reconstruct if self.reconstruct is not None else data and not self._reforms
        if self.distil and not refits:
            raise OptionError(
                "distilling follows refitting, which is turned off",
                where="--distil",
                remedy="Leave --constants, --calibrate and --no-reconstruct out.",
            )
        return Settings(
            plan,
            self.constants or "absorb",
            self.calibrate or 0,
            IMAGES if refits else 0,
            not data and not self._reforms,
            self.distil if self.distil is not None or refits else 0,
            self.opset,
            self.runs,
            self.threads,
            self.allow_unchecked,
            None if self.max_drop is None else Bound(self.max_drop / 100, self.epochs, self.minutes),
            given=None if self.plan is None else Plan.from_json(self.plan),
        )

    def _plan(self) -> dict[str, Any]:
        """The arguments of `irtool.plan`."""
        plan: dict[str, Any] = {
            name: getattr(self, name) for name in ("scope", "residual", "min_channels", "round_to", "seed", "stages", "groups", "allocator")
        }
        plan |= {"criterion": criterion_name(self.criterion), "ratio": self._ratio, "ignore": tuple(self.ignore)}
        plan |= {"depth": True} if self.depth else {}
        plan |= {"budget": check_budget(self.budget)} if self.budget else {}
        found = {LATENCY: 0.5} if self.max_drop is not None and self.engine is not None and not self.budget else self.budget or {}
        check_engine_request(found, self.engine, self.threads)
        plan |= {"engine": self.engine, "threads": self.threads} if self.engine is not None else {}
        return plan | ({"limits": check_limits(self.limits)} if self.limits else {})

    def _check_together(self) -> None:
        asked = {name: getattr(self, name) for name in _DECIDED_BY_A_PLAN}
        if self.plan is not None and (other := [name for name, value in asked.items() if value != getattr(CompressOptions, name)]):
            names = ", ".join(f"--{name.replace('_', '-')}" for name in other)
            raise OptionError("a plan, and how to make one", where="--plan", remedy=f"Leave {names} out.")
        if self.budget and self.ratio is not None:
            raise OptionError("a ratio and a budget", where="--ratio", remedy="Give one of them: the budget decides how many channels go.")
        if self.max_drop is not None and (self.ratio is not None or self._reforms):
            raise OptionError(
                "a bound, and how to go about it",
                where="--max-drop",
                remedy="Leave --ratio, --constants, --calibrate and --no-reconstruct out.",
            )
        if self.limits and not self.budget and self.max_drop is None:
            raise OptionError("limits hold for budgets", where="--layer-limit", remedy="Give --budget too.")

    @property
    def _ratio(self) -> float:
        return 0.5 if self.ratio is None else self.ratio

    @property
    def _reforms(self) -> bool:
        """Whether refitting, which a bound needs, is turned off."""
        return self.reconstruct is False or self.constants is not None or self.calibrate is not None

    def _require_images(self, data: bool) -> None:
        if data:
            return
        if self.max_drop is not None:
            raise OptionError("no images to lose accuracy on", where="--max-drop", remedy="Give --data too.")
        if self.distil:
            raise OptionError("no images", where="--distil", remedy="Give --data too, or leave it out.")
        if self.depth or self.allocator == "measured":
            flag = "--depth" if self.depth else "--allocator"
            raise OptionError("no images to choose by", where=flag, remedy="Give --data too, or leave it out.")
        if (self.stages or 1) > 1:
            raise OptionError("no images to refit on between stages", where="--stages", remedy="Give --data too, or leave it out.")
        if self.calibrate is not None and self.calibrate > 0:
            raise OptionError(f"{self.calibrate} images, and no --data", where="--calibrate", remedy="Give --data too.")

    def _check_numbers(self) -> None:
        residual = "couple" if self.residual == "auto" else self.residual
        check_options(criterion_name(self.criterion) or "l1", self._ratio, self.scope, residual, self.min_channels, self.round_to)
        if self.runs < 1 or self.threads < 1:
            raise OptionError(
                f"--runs {self.runs} and --threads {self.threads} must be at least 1", remedy="Leave them out for the defaults."
            )
        if self.stages is not None and self.stages < 1:
            raise OptionError(f"{self.stages}", where="--stages", remedy="Give 1 or a larger number.")
        check_opset(self.opset)
        for name in ("epochs", "minutes"):
            if self.max_drop is None and getattr(self, name) != getattr(CompressOptions, name):
                raise OptionError(f"{getattr(self, name)}, and no bound to train for", where=f"--{name}", remedy="Give --max-drop too.")
        for name, most, remedy in _MOST:
            if not 0 <= (getattr(self, name) or 0) <= most:
                raise OptionError(f"{getattr(self, name)}", where=f"--{name}", remedy=remedy)


_DECIDED_BY_A_PLAN = (
    "ratio", "budget", "limits", "stages", "criterion", "scope", "residual", "round_to", "groups", "depth", "allocator", "engine",
    "min_channels", "ignore", "seed", "max_drop",
)  # fmt: skip
_MOST = (
    ("threads", MOST_THREADS, FEWER_THREADS),
    ("calibrate", sys.maxsize, "Give a number of training images, or 0."),
    ("distil", 1000, "Give how often each image is looked at, 0 to 1,000."),
    ("seed", LARGEST_SEED, f"Give 0 to {LARGEST_SEED}."),
)
