"""Forward hooks: traced through where that works, else the module and its hooks stay one whole."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from torch import nn

from irtool.errors import TraceError
from irtool.hosts.torch.modules import HOOKS, submodule
from irtool.hosts.torch.tracing.recording.factories import answers_kinds
from irtool.hosts.torch.tracing.state.sandbox import TraceNotes
from irtool.hosts.torch.tracing.state.surroundings import contents, function_of, reached

M = TypeVar("M", bound=nn.Module)

_FORWARD = tuple(key for key in HOOKS if "forward" in key)
_KINDS = frozenset({"issubclass", "type", "is_tensor"})
"""Functions that nothing which stands for a tensor answers as the tensor would."""


class HiddenHooks(Exception):
    """The hooks of the module at `path` cannot be followed: it has to stay whole, they with it."""

    def __init__(self, path: str) -> None:
        super().__init__(f"the hooks of {path} cannot be traced")
        self.path = path


def hooked(module: nn.Module) -> bool:
    """Whether hooks run before or after the module's forward, and may change what goes in and what comes out."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def through(
    module: nn.Module, path: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any],
    leaf: Callable[..., Any] | None, asides: TraceNotes, *, values: bool,
) -> Any:  # fmt: skip
    """Run a module's hooks as torch does, on what stands for its values.

    Args:
        module: the module; `path` is its name.
        forward: torch's call of it, which runs the hooks and `module.forward`.
        args: what it is called with; `kwargs` by name.
        leaf: stands for the forward of a layer that is recorded as a whole. Where a hook exchanged what the layer computes
            with (its weight), its forward is traced into instead. None for a module that is traced into anyway.
        asides: told that this module has hooks.
        values: whether the tracer knows what it stands for.

    Raises:
        HiddenHooks: a hook failed, or asks what cannot be answered.
        TraceError: a hook asks what a tracer with values can answer.
    """
    _note_hooks(module, path, asides, values)
    own, before, replaced = module.forward, computes_with(module), module.__dict__.get("forward")
    failed: list[Exception] = []

    def inner(*args: Any, **kwargs: Any) -> Any:
        _put_back(module, replaced)
        now = computes_with(module)
        known = leaf is not None and now.keys() == before.keys() and all(now[key] is before[key] for key in now)
        if leaf is not None and not known and "training" in type(module).forward.__code__.co_names:
            asides.asked.setdefault(path)
        try:
            return cast(Any, leaf if known else own)(*args, **kwargs)
        except Exception as error:
            failed.append(error)
            raise

    module.__dict__["forward"] = inner
    try:
        return forward(*args, **kwargs)
    except HiddenHooks:
        raise
    except Exception as error:
        if error in failed:
            raise
        raise HiddenHooks(path) from error
    finally:
        _put_back(module, replaced)


def _note_hooks(module: nn.Module, path: str, asides: TraceNotes, values: bool) -> None:
    """Note a module's hooks and the containers that they reach. Raises HiddenHooks or TraceError where they cannot be followed."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    if not all(map(_follows, hooks)):
        raise HiddenHooks(path)
    if not values and any("isinstance" in function_of(hook).__code__.co_names for hook in hooks):
        raise TraceError(f"the hooks of {path} ask for a class", remedy="Remove them before tracing.")
    asides.hooked.setdefault(path)
    asides.reached += [found for hook in hooks for container in reached(hook) for found in contents(container)]


def _put_back(module: nn.Module, forward: Any) -> None:
    module.__dict__.pop("forward", None)
    if forward is not None:
        module.__dict__["forward"] = forward


def computes_with(module: nn.Module) -> dict[str, Any]:
    """The objects that a module holds, by name."""
    held = (module.__dict__, module._parameters, module._buffers)
    return {key: value for table in held for key, value in table.items() if key not in _NOT_COMPUTED}


_NOT_COMPUTED = frozenset({*HOOKS, "_parameters", "_buffers", "_modules", "training", "forward"})
"""Attributes that do not change a layer's numbers, or are compared elsewhere."""


def _follows(hook: Any) -> bool:
    """Whether a hook asks nothing of what it sees that cannot be answered; one without code of Python's may ask anything."""
    function = function_of(hook)
    code = getattr(function, "__code__", None)
    return code is not None and _KINDS.isdisjoint(code.co_names) and ("isinstance" not in code.co_names or answers_kinds(function))


def unhook(program: nn.Module, asides: TraceNotes) -> None:
    """Put layers without forward hooks in the place of those whose hooks the program holds by now, over the same tensors."""
    for path in asides.hooked:
        prefix, _, name = path.rpartition(".")
        try:
            owner = submodule(program, prefix)
        except KeyError:  # it was traced into, and nothing in it is read
            continue
        held = owner._modules.get(name)
        if held is not None and hooked(held):
            owner._modules[name] = _bare(held)


def _bare(module: M) -> M:
    made = module.__class__.__new__(module.__class__)
    made.__dict__.update(module.__dict__)
    made.__dict__.update((key, OrderedDict()) for key in _FORWARD)
    return made
