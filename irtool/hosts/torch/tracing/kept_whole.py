"""Parts of a model whose code no tracer can follow: they stay whole, and the rest is traced around them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from types import TracebackType

from torch import nn

from irtool.errors import TraceError
from irtool.hosts.torch.modules import modules_by_path
from irtool.hosts.torch.tracing.errors import first_line, source_lines

MOST = 8
"""Parts that may stay whole before the model as a whole counts as one that cannot be traced."""


@dataclass(frozen=True)
class Part:
    """A module in whose forward a tracer failed.

    Attributes:
        path: where it hangs in the model.
        said: a line for people.
    """

    path: str
    said: str


def failing_part(model: nn.Module, error: BaseException, whole: Collection[str]) -> Part | None:
    """The innermost module of the user's in which a tracer failed, or the next one around it if that was whole already.

    None if it is the model itself, or if no weight would be left outside of what stays whole.
    """
    paths = {id(module): path for path, module in modules_by_path(model).items() if not type(module).__module__.startswith("torch.")}
    found = [paths[held] for held in _selves(error.__traceback__) if paths.get(held)]
    path = found[-1] if found else ""
    while path in whole:
        path = path.rpartition(".")[0]
    if not path or not _leaves_weights(model, [*whole, path]):
        return None
    place = next(iter(source_lines(error)), type(model).__name__)
    cause = error.what if isinstance(error, TraceError) else first_line(error)
    return Part(path, f"{path} stays whole, and nothing in it is pruned: it cannot be traced at {place} ({cause})")


def _selves(trail: TracebackType | None) -> list[int]:
    """Identities of the objects whose methods an error came through, from the outside in."""
    found = []
    while trail is not None:
        if "self" in trail.tb_frame.f_code.co_varnames[: trail.tb_frame.f_code.co_argcount]:
            found.append(id(trail.tb_frame.f_locals.get("self")))
        trail = trail.tb_next
    return found


def _leaves_weights(model: nn.Module, whole: Collection[str]) -> bool:
    """Whether layers with weights lie outside of the parts that stay whole."""
    return any(not any(name.startswith(f"{path}.") for path in whole) for name, weight in model.named_parameters() if weight.dim() > 1)
