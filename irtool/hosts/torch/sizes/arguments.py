"""The arguments of a call in a traced program: sizes, indices and names, read and put back in the form they had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx


def sizes_argument(host: fx.Node) -> tuple[str | None, Sequence[Any]]:
    """The sizes that a call lists: by keyword, as one sequence, or as separate arguments."""
    key = next((k for k in ("shape", "size", "sizes") if k in host.kwargs), None)
    if key:
        listed = host.kwargs[key]
    else:
        listed = host.args[1] if len(host.args) == 2 and isinstance(host.args[1], tuple | list) else host.args[1:]
    return key, listed if isinstance(listed, tuple | list) else ()


def computed_sizes(host: fx.Node, examples: Mapping[fx.Node, Any]) -> fx.Node | None:
    """The node whose value is the sizes that a call lists, all of them as one tuple; None for a call that lists them one by one."""
    found = next(
        (host.kwargs[key] for key in ("shape", "size", "sizes") if key in host.kwargs), host.args[1] if len(host.args) == 2 else None
    )
    return found if isinstance(found, fx.Node) and isinstance(examples[found], tuple | list) else None


def with_sizes(host: fx.Node, key: str | None, sizes: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call's arguments with other sizes, in the form in which they were."""
    if key:
        return host.args, {**host.kwargs, key: tuple(sizes)}
    if len(host.args) == 2 and isinstance(host.args[1], tuple | list):
        return (host.args[0], list(sizes)), dict(host.kwargs)
    return (host.args[0], *sizes), dict(host.kwargs)


def filled_with(host: fx.Node, key: str | None, first: int, sizes: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a factory with other sizes."""
    if key is not None:
        return host.args, {**host.kwargs, key: sizes}
    packed = isinstance(host.args[first], tuple | list)
    return (*host.args[:first], sizes, *host.args[first + 1 :]) if packed else (*host.args[:first], *sizes), dict(host.kwargs)


def torch_name(host: fx.Node) -> str:
    """The plain name of what a host node calls."""
    if isinstance(host.target, torch._ops.OpOverload):
        return host.target._schema.name.split("::")[1]
    return str(getattr(host.target, "__name__", host.target))


def unflattened(host: fx.Node) -> tuple[int, Any]:
    """The axis that a call splits and the sizes that it splits it in: a sequence, or the node that computes one."""
    sizes = argument(host, 2, "sizes")
    return argument(host, 1, "dim"), argument(host, 2, "unflattened_size") if sizes is None else sizes


def argument(host: fx.Node, position: int, key: str, default: Any = None) -> Any:
    """An argument by position or keyword."""
    return host.args[position] if len(host.args) > position else host.kwargs.get(key, default)


def of_batch(size: fx.Node) -> bool:
    """Whether the program computes a size from the first one of a tensor."""
    found, todo = False, [size]
    while todo and not found:
        host = todo.pop()
        found = torch_name(host) in ("getitem", "size", "sym_size") and host.args[1:] == (0,)
        todo += [arg for arg in host.all_input_nodes if torch_name(arg) not in ("getattr", "size", "sym_size") or arg.args[1:] == (0,)]
    return found
