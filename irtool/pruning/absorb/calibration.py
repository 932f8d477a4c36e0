"""Constants to absorb, measured on the user's batches: what these do wrong is said in a line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from irtool.channels.labels import Labels
from irtool.errors import DataError, GraphError
from irtool.pruning.absorb.absorb import Absorption, absorption
from irtool.pruning.plan import Plan
from irtool.pruning.reconstruct.images import require_information
from irtool.pruning.slicing.plan_slicing import put_constants
from irtool.pruning.slicing.slicing import Slicing

_REMEDY = "Give a list of batches, each a tensor of the example's sizes (any batch size), or a tuple of the arguments of forward."


def listed(calibration: Any) -> Iterable[Any]:
    """The batches, refused where they are none: a tensor would be taken apart into samples."""
    if isinstance(calibration, Tensor | np.ndarray | str) or not isinstance(calibration, Iterable):
        raise DataError(f"a {type(calibration).__name__} is no list of batches", where="calibration", remedy=_REMEDY)
    return calibration


def constants_of_branches(slicing: Slicing[Any], plan: Plan, calibration: Iterable[Any] | None, *, drop: bool) -> list[str]:
    """`put_constants`, with batches from outside.

    Raises:
        DataError: these are no batches, or the model does not run on one.
    """
    if calibration is None or not plan.branches:
        return put_constants(slicing, plan, drop=drop)
    batches = [tuple(batch) if isinstance(batch, tuple | list) else (batch,) for batch in listed(calibration)]
    with _explained():
        return put_constants(slicing, plan, batches, drop=drop)


def measured(labels: Labels, keep: NDArray[np.bool_], calibration: Iterable[Any] | None) -> Absorption:
    """`absorption`, with batches from outside.

    Raises:
        DataError: these are no batches, the model does not run on one, or they say nothing.
    """
    if calibration is None:
        return absorption(labels, keep)
    batches = list(listed(calibration))
    require_information([tuple(batch) if isinstance(batch, tuple | list) else (batch,) for batch in batches])
    with _explained():
        return absorption(labels, keep, batches)


@contextmanager
def _explained() -> Iterator[None]:
    """Turn errors of a model on batches that it does not take into irtool's."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError, GraphError) as error:
        said = error.what.removeprefix("cannot run: ") if isinstance(error, GraphError) else str(error).strip()
        text = (said.splitlines() or [type(error).__name__])[0][:160]
        raise DataError(f"the model does not run on a batch ({text})", where="calibration", remedy=_REMEDY) from error
