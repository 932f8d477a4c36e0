"""Models that cannot be traced: those refused at once, and what is said when every tracer has failed."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as every
from torch.nn.modules.lazy import LazyModuleMixin

from irtool.errors import TraceError
from irtool.hosts.torch.modules import modules_by_path
from irtool.hosts.torch.tracing.recording.tracers import NOT_THE_USERS
from irtool.hosts.torch.tracing.state.sandbox import TraceNotes, untouched
from irtool.modes import evaluating
from irtool.nests import map_tensors

UNTRACEABLE = "Move the data-dependent part out of forward, name its module in leaf=, or trace the part before it."
REFUSED = "Give inputs that the model itself accepts: a tensor, or a tuple of the arguments of forward."
"""Remedies where no tracer can follow, and where there is nothing to follow."""


def refuse_unknown(model: nn.Module, leaf: Sequence[str | type]) -> None:
    """Names in `leaf=` that no module has.

    Raises:
        TraceError: the name, and what comes near it.
    """
    if isinstance(leaf, str) or not all(isinstance(entry, str | type) for entry in leaf):
        raise TraceError(f"{leaf!r} is no list of module paths and classes", where="leaf", remedy='Write leaf=["head"], or leaf=[MyHead].')
    paths = list(modules_by_path(model)) if leaf else []
    for name in leaf:
        if isinstance(name, str) and name not in paths:
            near = difflib.get_close_matches(name, paths, 3, 0.4)
            remedy = f"Did you mean {', '.join(near)}?" if near else "model.named_modules() lists the paths."
            raise TraceError(f"no module is called {name!r}", where="leaf", remedy=remedy)


def changeable(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """The model; or, if its weights were made under `torch.inference_mode`, where nobody may change them, a copy, and a note on that."""
    if not any(not nn.parameter.is_lazy(weight) and weight.is_inference() for weight in model.parameters()):
        return model, ()
    return copy.deepcopy(model), ("the weights were made under torch.inference_mode, which lets nobody change them: the graph has copies",)


def refuse_hidden(model: nn.Module) -> None:
    """Refuse what a trace of `forward` does not see, or cannot slice: scripted and compiled modules, hooks on the root, computed weights,
    layers that have none yet.

    A weight that a parametrisation computes has no entries of its own to slice.
    """
    if hasattr(model, "_orig_mod"):
        raise TraceError(
            "a module from torch.compile hides the code to trace", remedy="Pass the module that was compiled: model._orig_mod."
        )
    if every._global_forward_hooks or every._global_forward_pre_hooks:
        raise TraceError("hooks are set on all modules", remedy="Call handle.remove() on what register_module_forward_hook gave.")
    if model._forward_hooks or model._forward_pre_hooks:
        raise TraceError(
            "has hooks, which a trace of its forward does not see",
            where=type(model).__name__,
            remedy="Remove them, or trace torch.nn.Sequential(model), which calls them.",
        )
    for path, module in modules_by_path(model).items():
        _refuse_layer(path, module)


def _refuse_layer(path: str, module: nn.Module) -> None:
    """Refuse a layer whose code cannot be traced, or whose weights are computed or absent."""
    if isinstance(module, torch.jit.ScriptModule):
        raise TraceError(
            "a TorchScript module has no Python code to trace", where=path, remedy="Use the original nn.Module and load its state dict."
        )
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        raise TraceError(
            f"a {type(module).__name__} has no weights yet",
            where=path,
            remedy="Run the model once on an example first, or write the sizes into its layers.",
        )
    hooks = {type(hook).__name__ for hook in module._forward_pre_hooks.values()} if module._forward_pre_hooks else ()
    computed = module._modules.get("parametrizations")
    if isinstance(computed, nn.ModuleDict) and len(computed):
        names = ", ".join(computed)
        raise TraceError(
            f"{names} is computed by a parametrisation",
            where=path,
            remedy=f"Call torch.nn.utils.parametrize.remove_parametrizations(module, {names!r}) first.",
        )
    if "WeightNorm" in hooks or "SpectralNorm" in hooks:
        raise TraceError(
            "its weight is computed by weight or spectral norm",
            where=path,
            remedy="Call torch.nn.utils.remove_weight_norm or remove_spectral_norm on it first.",
        )


class MadeByForward(TraceError):
    """A layer that forward makes on its first call, with weights that are drawn then: a graph would draw them each time.

    Args:
        name: the layer or parameter.
    """

    def __init__(self, name: str) -> None:
        super().__init__(
            "is made by forward on its first call, with random weights",
            where=name,
            remedy="Run the model once on an example before tracing.",
        )


def explained(model: nn.Module, inputs: tuple[Any, ...], failures: Sequence[tuple[str, Exception]]) -> TraceError:
    """One error: that of the model itself, if it does not run on the inputs; else one out of those of all tracers. With the user's line."""
    refusal = _refusal(model, inputs)
    if refusal is not None:
        given = ", ".join(f"{list(leaf.shape)}" if isinstance(leaf, torch.Tensor) else f"a {type(leaf).__name__}" for leaf in inputs)
        place = next(source_lines(refusal), type(model).__name__)
        return TraceError(f"the model does not run on the example ({given}): {first_line(refusal)}", where=place, remedy=REFUSED)
    made = next((error for _, error in failures if isinstance(error, MadeByForward)), None)
    if made is not None:
        return made
    texts = [f"{name}: {first_line(error)}" for name, error in failures]
    place = next((line for _, error in failures for line in source_lines(error)), type(model).__name__)
    return TraceError(f"cannot be traced ({'; '.join(texts)})", where=place, remedy=UNTRACEABLE)


def _refusal(model: nn.Module, inputs: tuple[Any, ...]) -> Exception | None:
    """Return the model's error on these inputs in eval mode."""
    with untouched(model, TraceNotes(), flags=False), evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            model(*map_tensors(inputs, torch.clone))
        except Exception as error:  # the user's code
            return error
    return None


_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
"""Codes that colour text in a terminal: torch.export writes them into its errors."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, plain and short."""
    return (_COLOURS.sub("", str(error)).strip().splitlines() or [type(error).__name__])[0].removesuffix(", but expected one of:")[:160]


def source_lines(error: BaseException) -> Iterator[str]:
    """Give the source lines outside torch and irtool on an error's way up, the innermost first."""
    found = []
    trail = error.__traceback__
    while trail is not None:
        file = trail.tb_frame.f_code.co_filename
        if not file.startswith(NOT_THE_USERS):
            found.append(f"{Path(file).name}:{trail.tb_lineno}")
        trail = trail.tb_next
    yield from reversed(found)
