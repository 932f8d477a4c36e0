"""Weights that nothing can be computed with are refused where they are loaded, by name."""

from __future__ import annotations

from irtool.analysis.cost import held_by
from irtool.errors import FileError
from irtool.hosts.torch.graph import FxGraph
from irtool.ir import Graph

_ROLES = frozenset({"weight", "bias", "running_mean", "running_var"})
"""Roles of what a layer computes with. Other constants may well be infinite: the mask of an attention is."""


def require_finite(graph: Graph, where: str) -> None:
    """Refuse NaN, infinity and negative variances among the weights.

    Args:
        graph: the model.
        where: the file or the model that they come from.

    Raises:
        FileError: there are some; the first is named.
    """
    trained = (
        {name for name, held in graph.module.named_parameters(remove_duplicate=False) if held.requires_grad}
        if isinstance(graph, FxGraph)
        else set()
    )
    for node in graph.nodes:
        for role, name, data in held_by(graph, node):
            kind = role.rpartition(".")[2]
            if not data.is_floating_point() or data.is_meta or (kind not in _ROLES and name not in trained):
                continue
            numbers = data.float() if data.dtype.itemsize == 1 else data  # torch cannot tell of every float8
            if not numbers.isfinite().all():
                raise FileError(
                    f"{name} holds NaN or infinity", where=where, remedy="Load a sound checkpoint; that of a diverged training run is none."
                )
            if kind == "running_var" and (numbers < 0).any():
                raise FileError(f"{name} is a variance and holds negative numbers", where=where, remedy="Load a sound checkpoint.")
