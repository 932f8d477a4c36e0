"""The form of a recipe's step: what it is given, what it makes, and what makes it right to write it there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irtool.hosts.torch.graph import FxGraph
from irtool.progress import Reporter
from irtool.train import Data
from irtool.workflows.compress.built import CHECK_IMAGES
from irtool.workflows.equality.chain_inputs import chain_inputs, fitting_inputs

Options = Mapping[str, Any]


def _nothing(_options: Options) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True)
class Made:
    """The result of a step.

    Attributes:
        graph: the model now.
        accuracy: what the step measured itself: of the last epoch, or of the int8 file; None to have the model scored.
        notes: lines for people.
        history: of the training.
    """

    graph: FxGraph
    accuracy: float | None = None
    notes: tuple[str, ...] = ()
    history: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Context:
    """The surroundings that a step may use.

    Attributes:
        graph: the model as the step before left it.
        data: the dataset.
        folder: the step's own.
        results: the folders of earlier steps by name; `original` is the model as it came, `export` the last export.
        seed: the recipe's.
        progress: where it is shown.
    """

    graph: FxGraph
    data: Data
    folder: Path
    results: Mapping[str, Path]
    seed: int
    progress: Reporter

    def inputs(self) -> tuple[Any, ...]:
        """The inputs of numeric checks."""
        return fitting_inputs(self.graph, chain_inputs(self.graph.example_inputs, self.data.sample(CHECK_IMAGES)))


@dataclass(frozen=True)
class Kind:
    """One kind of step.

    Attributes:
        options: types by name.
        check: raises if an option, by name and value, can never work.
        run: does it.
        required: options without a default.
        before_fold: whether it needs batch norms.
        after: the kind of step that must have run.
        together: what is wrong with options that are each right by themselves, by an option's name.
    """

    options: Mapping[str, Any]
    check: Callable[[str, Any], None]
    run: Callable[[Context, Options], Made]
    required: tuple[str, ...] = ()
    before_fold: bool = False
    after: str = ""
    together: Callable[[Options], Mapping[str, str]] = _nothing
