"""Sparse training: an L1 penalty on the scales of batch norms (network slimming, Liu et al., ICCV 2017)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from irtool.errors import OptionError, TrainError
from irtool.progress import Progress, Status, silent
from irtool.tensor_defaults import real_tensors
from irtool.train.checkpoint import load_checkpoint
from irtool.train.data.dataset import Data, balanced
from irtool.train.data.loaders import Loaders, as_loaders
from irtool.train.data.split import Part
from irtool.train.evaluate import module_of
from irtool.train.fit import Penalty, Trainable, fit
from irtool.train.history import History, Record
from irtool.train.hooks import OnEpoch
from irtool.train.settings import Settings, is_number, is_whole, share_of_peak

NEAR_ZERO = 0.05
"""A scale counts as small when it is at most this share of the network's largest."""
RESISTANCE = 0.5
"""Share of the penalty's early pull that lasts: the loss resists more as scales shrink. Without this factor the search foretold
71 % of small scales for a strength that gave 50 % (VGG-11 at a quarter of its width, digits, 20 epochs)."""

Strength = float | Callable[[float], float]
"""The L1 weight, or a function from the position in [0, 1] of the run to it."""


def sparse(
    model: object,
    data: Trainable,
    settings: Settings | None = None,
    *,
    strength: Strength | str = 1e-4,
    ignore: tuple[str, ...] = (),
    share: float = 0.5,
    bound: float = 0.2,
    on_epoch: OnEpoch | None = None,
    progress: Progress = silent,
    **changes: Any,
) -> History:
    """Train a model in place so that many of its batch norm scales go to zero.

    Each step adds `strength * sign(gamma)`, the subgradient of `strength * |gamma|`, to the gradient of every batch norm
    scale. Each record's `extra` has the `strength` and the `small_scales`: the share of scales within 5 % of zero,
    measured against the largest.

    Args:
        model, data, settings, progress, changes: see `fit`.
        strength: a number (published: 1e-4 to 1e-3), a function of the position in the run, a text that `strength_of` reads,
            or "auto": see `find_strength`, which is given `share` and `bound`.
        ignore: names of batch norm modules that are not penalised.
        share, bound: for "auto".

    Raises:
        TrainError: the model has no batch norm with a scale, or see `fit`.
        OptionError: a strength that can never work, or an unknown name in `ignore`.
    """
    settings = Settings.merged(settings or Settings(), changes)
    module = module_of(model)
    batch_norm_scales(module, ignore)
    if strength == "auto" and settings.resume and settings.out and (settings.out / "last.pt").exists():
        strength = load_checkpoint(settings.out / "last.pt")["history"]["facts"].get("strength", "auto")
    if strength == "auto":
        strength = find_strength(module, data, settings, share=share, bound=bound, ignore=ignore, progress=progress)
    value = strength_of(strength)

    def measure(trained: nn.Module, record: Record) -> Mapping[str, float]:
        extra = {"strength": _at(value, record.epoch / settings.epochs), "small_scales": small_scales(trained, ignore)}
        return extra | dict(on_epoch(trained, record) or {} if on_epoch else {})

    told = value if not callable(value) else strength if isinstance(strength, str) else "function"
    facts = {"stage": "sparse", "strength": told, "ignore": list(ignore)}
    return fit(module, data, settings, penalty=l1_on_scales(value, ignore), on_epoch=measure, facts=facts, progress=progress)


def l1_on_scales(strength: Strength, ignore: tuple[str, ...] = ()) -> Penalty:
    """The penalty that `sparse` gives to `fit`."""

    def penalty(module: nn.Module, position: float) -> None:
        pairs = [(scale.grad, scale.detach()) for scale in batch_norm_scales(module, ignore).values() if scale.grad is not None]
        if not pairs:
            raise TrainError(
                "no batch norm with a trainable scale takes part in the output",
                where="model",
                remedy="Call the batch norms in forward, or prune by another criterion (l1, l2).",
            )
        signs = torch._foreach_sign([scale for _, scale in pairs])
        torch._foreach_add_([gradient for gradient, _ in pairs], signs, alpha=_at(strength, position))

    return penalty


def batch_norm_scales(module: nn.Module, ignore: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """The trainable scale (C,) of each batch norm, by module name.

    Raises:
        OptionError: a name in `ignore` is not one of a batch norm.
        TrainError: none is left.
    """
    norms = {name: child for name, child in module.named_modules() if isinstance(child, nn.modules.batchnorm._BatchNorm)}
    unknown = sorted(set(ignore) - set(norms))
    if unknown:
        raise OptionError(f"no batch norm is called {unknown[0]!r}", where="ignore", remedy=f"Known: {', '.join(list(norms)[:8])} ...")
    scales: dict[str, Tensor] = {
        name: norm.weight for name, norm in norms.items() if norm.affine and norm.weight.requires_grad and name not in ignore
    }
    if not scales:
        raise TrainError(
            "no batch norm with a trainable scale", where="model", remedy="Train before folding, or prune by another criterion (l1, l2)."
        )
    return scales


def small_scales(model: object, ignore: tuple[str, ...] = ()) -> float:
    """The share in [0, 1] of batch norm scales of at most `NEAR_ZERO` times the largest, in absolute value."""
    every = torch.cat([scale.detach().abs().flatten() for scale in batch_norm_scales(module_of(model), ignore).values()])
    return float((every <= NEAR_ZERO * every.max()).float().mean())


def strength_of(value: Strength | str) -> Strength:
    """Read a strength: `"1e-4"` is a number, `"1e-5:1e-3"` rises (or falls) linearly over the run.

    Raises:
        OptionError: neither, or negative.
    """
    if callable(value):
        return value
    try:
        ends = [float(part) for part in str(value).split(":")]
    except ValueError:
        ends = []
    if len(ends) not in (1, 2) or any(not 0 <= end < 1 for end in ends):
        raise OptionError(
            f"strength {value!r}", remedy='Give a number from 0 to below 1 (1e-4 to 1e-3 are usual), "from:to" for a ramp, or "auto".'
        )
    first, last = ends[0], ends[-1]
    return first if first == last else lambda position: first + (last - first) * position


def _at(strength: Strength, position: float) -> float:
    return float(strength(position)) if callable(strength) else float(strength)


@real_tensors()
def find_strength(
    model: object,
    data: Trainable,
    settings: Settings | None = None,
    *,
    share: float = 0.5,
    bound: float = 0.2,
    steps: int = 40,
    candidates: tuple[float, ...] = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2),
    ignore: tuple[str, ...] = (),
    progress: Progress = silent,
) -> float:
    """A short search for a strength: the smallest candidate that is on course to bring enough scales near zero.

    Copies of the model are trained for `steps` steps at the settings' learning rate, first without a penalty and then with
    each candidate in rising order, all on the same images in the same order. A scale is on course when the shrinkage that
    the penalty causes (against the copy without; over the trial's second half, when momentum is up to speed), carried on in
    a straight line to the end of the run at `RESISTANCE` of its speed, takes it to `NEAR_ZERO` of the largest. The search
    stops at the first candidate with `share` of the scales on course, or before the first that diverges or whose loss
    exceeds the loss without penalty by more than `bound` (a fraction).

    Args:
        share: the wanted share of small scales at the end of the run, in (0, 1).
        bound: how much the trial's mean loss may rise, as a fraction of the loss without penalty.
        steps: the length of each trial.
        candidates: strengths, rising.

    Raises:
        OptionError: `share`, `bound`, `steps` or `candidates` can never work.
        TrainError: see `sparse`.
    """
    _check_search(share, bound, steps, candidates)
    module = module_of(model)
    search = _Search(module, as_loaders(data), settings or Settings(), steps, ignore)
    free = search.trial(0.0)
    chosen = candidates[0]
    for number, candidate in enumerate(candidates, start=1):
        try:
            found = search.trial(candidate)
        except TrainError:  # the same trial without a penalty went through, so this one diverged
            break
        if found.loss > free.loss * (1 + bound):
            break
        chosen, reached = candidate, search.on_course(found, free)
        progress(Status(f"search strength {candidate:g}: {reached:.0%} of scales on course", number, len(candidates), found.loss))
        if reached >= share:
            break
    return chosen


def _check_search(share: float, bound: float, steps: int, candidates: tuple[float, ...]) -> None:
    known = all(is_number(value) for value in (share, bound, *candidates)) and is_whole(steps, 1)
    if not known or not 0 < share < 1 or bound <= 0 or not candidates or list(candidates) != sorted(candidates):
        raise OptionError(
            f"share {share!r}, bound {bound!r}, steps {steps!r}, candidates {candidates}",
            remedy="Give 0 < share < 1, bound > 0, a whole number of steps and rising candidates.",
        )


@dataclass(frozen=True)
class _Trial:
    """A trial's mean loss over all processes (so that all of them choose alike), and its scales at half time and at the end."""

    loss: float
    half: Tensor
    end: Tensor


class _Search:
    """Short trainings of copies of a module, all alike but for the penalty's strength."""

    def __init__(self, module: nn.Module, data: Data | Loaders, settings: Settings, steps: int, ignore: tuple[str, ...]) -> None:
        self._module, self._ignore = module, ignore
        # With one learning rate: the first steps of the run that is planned.
        self._settings = replace(
            settings,
            epochs=1,
            schedule="constant",
            warmup=0.0,
            ema=0.0,
            time_budget=0.0,
            evaluate_every=0,
            out=None,
            resume=False,
            tensorboard=False,
            patience=0,
        )
        self._data, trial_steps, run_steps = _first(data, steps, settings)
        # In halves of a trial, at the trial's rate: how much of the run is left when the trial ends.
        self._left = max(0.0, _mean_rate(settings) * run_steps / trial_steps - 1) * 2
        self._limit = NEAR_ZERO * float(_scales(module, ignore).max())

    def trial(self, strength: float) -> _Trial:
        """Train a copy."""
        trained = copy.deepcopy(self._module)
        shrink = l1_on_scales(strength, self._ignore)
        half: list[Tensor] = []

        def penalty(network: nn.Module, position: float) -> None:
            if position >= 0.5 and not half:
                half.append(_scales(network, self._ignore))
            shrink(network, position)

        history = fit(trained, self._data, self._settings, penalty=penalty)
        return _Trial(history.last.train_loss, half[0], _scales(trained, self._ignore))

    def on_course(self, found: _Trial, free: _Trial) -> float:
        """The share of scales that will be small at the end of the run, if the penalty's pull goes on."""
        shrinkage = (found.half - found.end) - (free.half - free.end)
        return float((found.end - shrinkage * self._left * RESISTANCE <= self._limit).float().mean())


def _first(data: Data | Loaders, steps: int, settings: Settings) -> tuple[Data | Loaders, float, float]:
    """The data of a trial of so many steps, and the steps of it and of the whole run."""
    if isinstance(data, Loaders):
        some = data.first(steps)
        return some, some.steps, settings.epochs * data.steps
    images = min(len(data.train), steps * settings.batch_size)
    part = Part(data.train, balanced(data.train.labels, images, settings.seed))
    found = replace(data, train=part, test=Part(data.test, torch.arange(min(64, len(data.test)))))
    return found, len(part) / settings.batch_size, settings.epochs * len(data.train) / settings.batch_size


def _mean_rate(settings: Settings) -> float:
    """The mean learning rate of the run as a share of its peak: the penalty moves a scale in proportion to it."""
    return sum(share_of_peak(settings, (step + 0.5) / 100) for step in range(100)) / 100


def _scales(module: nn.Module, ignore: tuple[str, ...]) -> Tensor:
    """All scales in one vector, absolute, on the CPU."""
    return torch.cat([scale.detach().abs().cpu().flatten() for scale in batch_norm_scales(module, ignore).values()])
