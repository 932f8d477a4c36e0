"""The training stages by name, with the options that each has beside the settings. Commands and recipes read this table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from irtool.errors import OptionError
from irtool.progress import Progress, silent
from irtool.train.distill import FINETUNE, distill, finetune
from irtool.train.fit import Trainable, fit
from irtool.train.history import History
from irtool.train.qat import folded, qat
from irtool.train.settings import Settings
from irtool.train.sparse import sparse

Run = Callable[[object, Trainable, Settings, Mapping[str, Any], Progress], History]


@dataclass(frozen=True)
class Stage:
    """One kind of training.

    Attributes:
        settings: what it starts from; a user's settings replace some of them.
        options: the names of its own options.
        run: (model, data, settings, options, progress) -> history; the model is trained in place.
        begun: makes what is trained of a graph; by default the graph itself.
    """

    settings: Settings
    options: tuple[str, ...]
    run: Run
    begun: Callable[[Any], Any] = lambda graph: graph


def _plain(model: object, data: Trainable, settings: Settings, options: Mapping[str, Any], progress: Progress) -> History:
    return fit(model, data, settings, facts={"stage": "plain"}, progress=progress)


def _sparse(model: object, data: Trainable, settings: Settings, options: Mapping[str, Any], progress: Progress) -> History:
    return sparse(model, data, settings, progress=progress, **options)


def _finetune(model: object, data: Trainable, settings: Settings, options: Mapping[str, Any], progress: Progress) -> History:
    return finetune(model, data, settings, progress=progress)


def _distill(model: object, data: Trainable, settings: Settings, options: Mapping[str, Any], progress: Progress) -> History:
    if options.get("teacher") is None:
        raise OptionError("distilling needs a teacher", where="distill", remedy="Name the model to learn from: teacher.")
    return distill(model, data=data, settings=settings, progress=progress, **options)


def _qat(model: object, data: Trainable, settings: Settings, options: Mapping[str, Any], progress: Progress) -> History:
    return qat(model, data, settings, progress=progress, **options)


STAGES: dict[str, Stage] = {
    "plain": Stage(Settings(), (), _plain),
    "sparse": Stage(Settings(), ("strength", "share", "bound", "ignore"), _sparse),
    "finetune": Stage(FINETUNE, (), _finetune),
    "distill": Stage(FINETUNE, ("teacher", "alpha", "temperature", "cache"), _distill),
    "qat": Stage(FINETUNE, ("engine", "weight_bits", "weights_only"), _qat, folded),
}


def train(
    stage: str,
    model: object,
    data: Trainable,
    changes: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> History:
    """Run a stage by name.

    Args:
        stage: a key of `STAGES`.
        model, data, progress: see `fit`.
        changes: settings by name that replace the stage's own.
        options: the stage's own options; those that are None are left out.

    Raises:
        OptionError: an unknown stage, setting or option, or a value that can never work.
        IrtoolError: see `fit`.
    """
    found = STAGES.get(stage)
    if found is None:
        raise OptionError(f"no stage is called {stage!r}", remedy=f"Stages are {', '.join(STAGES)}.")
    given = {name: value for name, value in (options or {}).items() if value is not None}
    foreign = sorted(set(given) - set(found.options))
    if foreign:
        owners = [name for name, other in STAGES.items() if foreign[0] in other.options]
        raise OptionError(
            f"{foreign[0]} is no option of the stage {stage}",
            remedy=f"It belongs to {' and '.join(owners)}." if owners else f"It has {', '.join(found.options) or 'none'}.",
        )
    return found.run(model, data, Settings.merged(found.settings, changes or {}), given, progress)
