"""The options of a training run: one frozen value, checked when it is made."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from irtool.errors import OptionError
from irtool.train.data.augment import Augment


@dataclass(frozen=True)
class Settings:
    """Options that every training stage shares.

    Args:
        epochs: passes over the training split.
        lr: the peak learning rate.
        batch_size: images a step *in each process*: two processes with 64 train as one does with 128.
        optimizer: "sgd", or "adamw" (which wants a smaller `lr`, 0.001 say); `fit(optimizer=...)` takes any other.
        momentum, nesterov, weight_decay: of SGD; the last of AdamW too.
        schedule: "cosine" (to zero), "step" (times `drop` at each of `milestones`), "one-cycle" (Smith and Topin, 2018: up
            from lr/25 for 30 % of the run, then a cosine to lr/10,000), or "constant".
        milestones: for "step": fractions of the run.
        drop: for "step": the factor at each milestone.
        warmup: epochs of linear rise before (and within) the schedule; may be a fraction.
        label_smoothing: share of the target spread evenly over the classes.
        mixup: the alpha of its Beta distribution (Zhang et al., 2018); 0 is off. Partners are neighbours in the shuffled
            order, one coefficient a batch.
        ema: decay of an exponential moving average of the weights a step (0.999, say); 0 is off. Where it is on, it is what
            is evaluated, kept as best, and left in the model.
        clip: the largest gradient norm; 0 is off.
        crop: pixels of black padding for random crops; None takes an eighth of the image; 0 is off.
        flip: random horizontal mirroring; None does what the data says (off for digits).
        channels_last: memory format during training. Pays on GPUs, seldom on CPUs.
        seed: of order, augmentation, mixup and dropout.
        evaluate_every: epochs between two scorings of the test split; the last epoch is always scored. 0: only the last.
        time_budget: seconds after which the run ends, its schedule compressed to end there too; 0 is off. Runs under a
            budget are not reproducible to the bit.
        patience: end after so many scorings without a better test accuracy; 0 is off. What the test split ends, it scores too kindly.
        device: "auto", "cpu", "cuda", or "mps".
        precision: "32-true" or "bf16-mixed".
        out: folder for `last.pt`, `best.pt` and `log.csv`; None keeps nothing.
        resume: continue from `last.pt` in `out`, if it is there.
        tensorboard: also write TensorBoard events to `out`.

    Raises:
        OptionError: a value that can never work; it is named.
    """

    epochs: int = 10
    lr: float = 0.1
    batch_size: int = 64
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.75)
    drop: float = 0.1
    warmup: float = 0.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    ema: float = 0.0
    clip: float = 0.0
    crop: int | None = None
    flip: bool | None = None
    channels_last: bool = False
    seed: int = 0
    evaluate_every: int = 1
    time_budget: float = 0.0
    patience: int = 0
    device: str = "auto"
    precision: str = "32-true"
    out: Path | None = None
    resume: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _plain(getattr(self, field.name)))
        if isinstance(self.out, (str, os.PathLike)):
            object.__setattr__(self, "out", Path(self.out))
        for name, (valid, remedy) in _RULES.items():
            value = getattr(self, name)
            if not valid(value):
                raise OptionError(f"{name} = {value!r}", remedy=remedy)
        if (self.resume or self.tensorboard) and self.out is None:
            raise OptionError("resume and tensorboard need a folder", remedy="Give out=FOLDER too.")
        if self.nesterov and not self.momentum:
            raise OptionError("nesterov without momentum", remedy="Give a momentum too, 0.9 say, or leave nesterov out.")

    @classmethod
    def merged(cls, base: Settings, changes: Mapping[str, Any]) -> Settings:
        """`base` with some fields replaced by name.

        Raises:
            OptionError: there is no such option, or a value can never work.
        """
        if not isinstance(base, Settings):
            raise OptionError(f"the settings are a {type(base).__name__}", remedy="Give Settings(...), or options by name: epochs=3.")
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(changes) - known)
        if unknown:
            raise OptionError(f"no such training option: {', '.join(unknown)}", remedy=f"Known: {', '.join(sorted(known))}.")
        return replace(base, **changes)

    def augmentation(self, flip: bool, size: tuple[int, int]) -> Augment:
        """Return what is done to training images of `size` (height, width), of a dataset that may be mirrored or not."""
        return Augment(min(size) // 8 if self.crop is None else self.crop, flip if self.flip is None else self.flip, self.mixup)

    def identity(self) -> dict[str, Any]:
        """The options that decide the resulting weights, as plain values: what must agree for a run to be resumed."""
        plain = asdict(self)
        for name in ("out", "resume", "tensorboard", "evaluate_every", "device"):
            del plain[name]
        return plain | {"milestones": list(self.milestones)}


def _one_cycle(position: float) -> float:
    if position < 0.3:
        return 1 / 25 + (1 - 1 / 25) * (1 - math.cos(math.pi * position / 0.3)) / 2
    return 1e-4 + (1 - 1e-4) * (1 + math.cos(math.pi * (position - 0.3) / 0.7)) / 2


OPTIMIZERS = ("sgd", "adamw")
SCHEDULES: dict[str, Callable[[float, Settings], float]] = {
    "cosine": lambda position, settings: (1 + math.cos(math.pi * position)) / 2,
    "step": lambda position, settings: settings.drop ** sum(position >= mark for mark in settings.milestones),
    "one-cycle": lambda position, settings: _one_cycle(position),
    "constant": lambda position, settings: 1.0,
}


def share_of_peak(settings: Settings, position: float) -> float:
    """The learning rate over its peak at `position` in [0, 1] of the run. A pure function, so a resumed run needs no scheduler state."""
    rate = SCHEDULES[settings.schedule](position, settings)
    warm = settings.warmup / settings.epochs
    return rate * min(1.0, position / warm) if warm > 0 else rate


def is_number(value: object) -> bool:
    """Whether a value is a finite number, and neither a text nor a truth value."""
    plain = _plain(value)
    # Not math.isfinite: it raises for whole numbers that no float can hold.
    return isinstance(plain, (int, float)) and not isinstance(plain, bool) and abs(plain) <= sys.float_info.max


def is_whole(value: object, least: int, most: int = sys.maxsize) -> bool:
    """Whether a value is a whole number from `least` to `most`."""
    plain = _plain(value)
    return isinstance(plain, int) and not isinstance(plain, bool) and least <= plain <= most


def _plain(value: Any) -> Any:
    """A value in Python's own types: numpy's would make a checkpoint that `weights_only` refuses."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    return tuple(_plain(item) for item in value) if isinstance(value, (list, tuple)) else value


_Rule = tuple[Callable[[Any], bool], str]
_POSITIVE: _Rule = (lambda value: is_number(value) and value > 0, "Give a number greater than 0.")
_WHOLE: _Rule = (lambda value: is_whole(value, 1), "Give a whole number of at least 1.")
_WHOLE_OR_0: _Rule = (lambda value: is_whole(value, 0), "Give a whole number of at least 0.")
_NOT_NEGATIVE: _Rule = (lambda value: is_number(value) and value >= 0, "Give a number of at least 0.")
_SHARE: _Rule = (lambda value: is_number(value) and 0 <= value < 1, "Give a number from 0 up to, not including, 1.")
_SWITCH: _Rule = (lambda value: isinstance(value, bool), "Give True or False.")


def _one_of(known: Iterable[str], remedy: str) -> _Rule:
    return (lambda value: isinstance(value, str) and value in known, remedy)


def _or_none(rule: _Rule) -> _Rule:
    return (lambda value: value is None or rule[0](value), rule[1])


_RULES: dict[str, _Rule] = {
    "epochs": _WHOLE,
    "lr": _POSITIVE,
    "batch_size": _WHOLE,
    "optimizer": _one_of(OPTIMIZERS, f"Choose one of: {', '.join(OPTIMIZERS)}; or give fit(optimizer=...) a factory."),
    "momentum": _SHARE,
    "nesterov": _SWITCH,
    "weight_decay": _NOT_NEGATIVE,
    "schedule": _one_of(SCHEDULES, f"Choose one of: {', '.join(SCHEDULES)}."),
    "milestones": (
        lambda value: isinstance(value, tuple) and all(is_number(mark) and 0 < mark < 1 for mark in value),
        "Give fractions of the run, between 0 and 1: (0.5, 0.75), say.",
    ),
    "drop": _POSITIVE,
    "warmup": _NOT_NEGATIVE,
    "label_smoothing": _SHARE,
    "mixup": _NOT_NEGATIVE,
    "ema": _SHARE,
    "clip": _NOT_NEGATIVE,
    "crop": _or_none((_WHOLE_OR_0[0], "Give a number of pixels: a whole one, of at least 0.")),
    "flip": _or_none(_SWITCH),
    "channels_last": _SWITCH,
    "seed": _WHOLE_OR_0,
    "evaluate_every": _WHOLE_OR_0,
    "time_budget": _NOT_NEGATIVE,
    "patience": _WHOLE_OR_0,
    "device": _one_of(("auto", "cpu", "cuda", "gpu", "mps"), "Choose auto, cpu, cuda or mps."),
    # 16-bit floats need a loss scale, under which a penalty added to the gradients would be scaled wrongly.
    "precision": _one_of(("32-true", "bf16-mixed"), "Choose 32-true or bf16-mixed."),
    "out": _or_none((lambda value: isinstance(value, Path), "Give the path of a folder.")),
    "resume": _SWITCH,
    "tensorboard": _SWITCH,
}
