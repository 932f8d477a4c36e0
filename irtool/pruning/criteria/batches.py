"""The data that a criterion looks at."""

from __future__ import annotations

import sys
from typing import Any

from irtool.errors import DataError, PlanError
from irtool.ir.frontier import Batch
from irtool.ir.graph import G, Graph
from irtool.pruning.criteria.criteria import CRITERIA, Batches, Criterion
from irtool.pruning.reconstruct.images import image_batches, split_to_fit
from irtool.pruning.reconstruct.stand_in import IMAGES, can_stand_in, noise_batches, with_statistics_of

CHUNK = 64
"""Images that are run together."""


def default_criterion(graph: Graph, data: Any, *, budget: bool = False) -> str:
    """Choose the criterion of a plan where the user names none: the best for what is given.

    Args:
        graph: the graph.
        data: images, or None.
        budget: whether a cost is asked for: then noise takes the place of images where there are none.
    """
    if data is None and not (budget and can_stand_in(graph)):
        return "l1"
    return "fisher" if graph.trainable else "activation"


def without_images(graph: G, seed: int) -> tuple[G, list[Batch]]:
    """A graph whose batch norms take noise for what they were trained on, and the noise: what a criterion looks at where there are no images."""
    batches = noise_batches(graph, IMAGES, CHUNK, seed)
    return with_statistics_of(graph, batches), batches


def batches_for(graph: Graph, chosen: Criterion, data: Any) -> Batches:
    """The batches that a criterion will look at: none for one that reads parameters alone.

    Raises:
        DataError: it needs data, and there are none, or the graph does not take them.
        PlanError: it needs gradients, and the graph has none to give.
    """
    if chosen.reads == "parameters":
        return ()
    if chosen.reads == "gradients" and not graph.trainable:
        known = ", ".join(name for name, entry in CRITERIA.items() if entry.reads != "gradients")
        raise PlanError(
            f"{chosen.name} needs gradients, which an ONNX graph does not have", where="criterion", remedy=f"Choose one of {known}."
        )
    if data is None:
        raise DataError(
            f"the criterion {chosen.name} looks at images", where="data", remedy="Give data=images (no labels are needed), or choose l1."
        )
    return split_to_fit(graph, image_batches(graph, data, sys.maxsize, CHUNK))
