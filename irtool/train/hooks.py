"""Hooks of a training run, beside its settings: an optimiser, calls after steps and epochs, a logger, an early end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from irtool.errors import OptionError
from irtool.train.history import History, Record
from irtool.train.settings import Settings

OnEpoch = Callable[[nn.Module, Record], Mapping[str, float] | None]
"""Called after each epoch; what it returns is added to the record's `extra`."""
OnStep = Callable[[nn.Module, int, float], None]
"""Called after each step of the optimiser, with the module, the number of steps of the run so far, and the batch's loss."""
MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
"""Makes an optimiser of the parameters that are trained. The schedule scales the learning rates that its groups begin with."""


class Logger(Protocol):
    """Anything that takes numbers by name: a run of Weights & Biases, of ClearML, of one's own."""

    def log(self, values: dict[str, Any], /) -> Any: ...


@dataclass(frozen=True)
class Hooks:
    """Functions that a run calls.

    Attributes:
        optimizer: makes the optimiser; None: the one that the settings name.
        on_step, on_epoch: see `OnStep`, `OnEpoch`.
        logger: gets each epoch's record as plain numbers by name.
    """

    optimizer: MakeOptimizer | None = None
    on_step: OnStep | None = None
    on_epoch: OnEpoch | None = None
    logger: Logger | None = None


def _sgd(parameters: Iterable[nn.Parameter], settings: Settings) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        parameters, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov, weight_decay=settings.weight_decay
    )


def _adamw(parameters: Iterable[nn.Parameter], settings: Settings) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)


_MAKERS: Mapping[str, Callable[[Iterable[nn.Parameter], Settings], torch.optim.Optimizer]] = {"sgd": _sgd, "adamw": _adamw}
"""One for each name in `OPTIMIZERS`."""


def optimizer_of(module: nn.Module, settings: Settings, make: MakeOptimizer | None) -> torch.optim.Optimizer:
    """The optimiser of a run, with the rate that each group begins with kept as `initial_lr`.

    Raises:
        OptionError: a factory gave no optimiser.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    made = _MAKERS[settings.optimizer](parameters, settings) if make is None else make(parameters)
    if not isinstance(made, torch.optim.Optimizer):
        raise OptionError(
            f"the factory gave a {type(made).__name__}", where="optimizer", remedy="Return an optimiser of the parameters that it gets."
        )
    for group in made.param_groups:
        group["initial_lr"] = float(group["lr"])
    return made


def numbers_of(record: Record) -> dict[str, float]:
    """An epoch as a logger takes it: numbers by name, those left out that were not measured."""
    plain: dict[str, float | Tensor | None] = {**record.row()}
    return {name: float(value) for name, value in plain.items() if isinstance(value, int | float)}


def stalled(history: History, patience: int) -> bool:
    """Whether so many scorings in a row brought no better test accuracy than the best before them; never with a patience of 0."""
    scored = [record.test_accuracy for record in history.records if record.test_accuracy is not None]
    if not patience or len(scored) <= patience:
        return False
    return max(scored[-patience:]) <= max(scored[:-patience])
