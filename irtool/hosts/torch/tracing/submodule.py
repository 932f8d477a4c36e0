"""Tracing a part of a model that cannot be traced as a whole (a detector's backbone, a stage of a pipeline)."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from irtool.errors import TraceError
from irtool.hosts.torch.graph import FxGraph
from irtool.hosts.torch.tracing.state.sandbox import TraceNotes, untouched
from irtool.hosts.torch.tracing.state.write_back import put_back_writes
from irtool.modes import evaluating
from irtool.nests import map_tensors
from irtool.tensor_defaults import plain_tensors


class _Reached(Exception):
    """Stops the model once the part has been reached: the rest of it need not run."""


def capture(model: nn.Module, inputs: Sequence[Any], path: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """Run the whole model and return the part at `path` with the positional arguments of its first call.

    Raises:
        TraceError: there is no such part, or the model does not call it on these inputs.
    """
    try:
        part = model.get_submodule(path)
    except AttributeError as error:
        near = ", ".join(name for name, _ in model.named_children())
        raise TraceError("no such part of the model", where=path, remedy=f"Its parts are {near}.") from error
    seen: list[tuple[Any, ...]] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        seen.append(map_tensors(tuple(bound.arguments.values()), torch.clone))
        raise _Reached

    with untouched(model, TraceNotes(), flags=False), evaluating(model), torch.no_grad(), put_back_writes(model):
        part.register_forward_pre_hook(hook, with_kwargs=True)  # taken off again with all that the run changes
        try:
            model(*map_tensors(tuple(inputs), torch.clone))
        except _Reached:
            pass
    if not seen:
        raise TraceError("the model never calls this part on the example inputs", where=path, remedy="Name a part that runs.")
    return part, seen[0]


@plain_tensors()
def put_back(model: nn.Module, path: str, graph: FxGraph) -> nn.Module:
    """A copy of `model` with the part at `path` replaced by a graph's module.

    The part's plain attributes (`out_channels` and the like) are carried over where the graph's module has none of that
    name, since the rest of the model may read them.

    Raises:
        TraceError: there is no such part, or `graph` is none.
    """
    if not isinstance(graph, FxGraph):
        raise TraceError(
            f"a {type(graph).__name__} is no graph", where="put_back", remedy="Pass what trace or prune returned, not its module."
        )
    new = copy.deepcopy(model)
    parent_path, _, name = path.rpartition(".")
    try:
        part = new.get_submodule(path)
    except AttributeError as error:
        raise TraceError("no such part of the model", where=path, remedy="Give the path that was traced.") from error
    module: fx.GraphModule = graph.clone().module
    for key, value in vars(part).items():
        if not key.startswith("_") and not hasattr(module, key):
            setattr(module, key, value)
    module.train(part.training)
    setattr(new.get_submodule(parent_path), name, module)
    return new
