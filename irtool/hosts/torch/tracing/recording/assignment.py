"""`x[index] = value` of a traced tensor, recorded as what torch makes of it: a write into the part of x that `x[index]` is."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from irtool.hosts.torch.tracing.recording.proxies import AUGMENTED

_NO_TENSOR = "proxies of what forward changes in the model itself are not assigned to"


def assign(target: fx.Proxy, index: Any, value: Any) -> None:
    """Record the write, so that whatever reads the tensor later on reads it as it is then.

    Args:
        target: what stands for the tensor.
        index: as in Python: slices, numbers, None, `...`, tensors of places, one boolean mask.
        value: a number, or what stands for a tensor that is broadcast.

    Raises:
        TypeError: the tensor is the model's own, the index holds what no part of a tensor is known for, or this tracer would have to
            know values for it. The next tracer then has its turn, or the module stays whole.
    """
    if _beginning(target.node).op == "get_attr":
        raise TypeError(f"'{type(target).__name__}' object does not support item assignment: {_NO_TENSOR}")
    entries = index if isinstance(index, tuple) else (index,)
    if not all(map(_is_basic, entries)):
        _assign_at(target, entries, value)
        return
    made = value.node if isinstance(value, fx.Proxy) else None
    if made is not None and _wrote_already(made, target.node, target.tracer.create_arg(index)):
        return
    part = target.tracer.create_proxy("call_function", operator.getitem, (target, index), {})
    _fill(part, value)


def _fill(part: fx.Proxy, value: Any) -> None:
    """Write a number, or a tensor, over all of a view.

    A tensor is stretched first, as torch does it for an assignment: exporters take `copy_` for one that broadcasts nothing.
    """
    tracer, own, held = part.tracer, getattr(part, "value", None), getattr(value, "value", value)
    if isinstance(held, int | float | complex):
        tracer.create_proxy("call_method", "fill_", (part, value), {})
        return
    if isinstance(own, torch.Tensor) and isinstance(held, torch.Tensor):
        if held.dim() > own.dim():  # leading axes of one entry
            value = value[(0,) * (held.dim() - own.dim())]
        if held.shape == own.shape:
            tracer.create_proxy("call_method", "copy_", (part, value), {})
            return
    tracer.create_proxy("call_method", "copy_", (part, tracer.create_proxy("call_method", "expand_as", (value, part), {})), {})


def _assign_at(target: fx.Proxy, entries: tuple[Any, ...], value: Any) -> None:
    """Write where a mask is true, or at places along one axis."""
    known = getattr(target, "value", None)
    if not isinstance(known, torch.Tensor):  # the kind of an index is known with values alone
        raise TypeError(f"'{type(target).__name__}' object does not support item assignment by a tensor")
    number = isinstance(value, int | float) or getattr(getattr(value, "value", value), "ndim", 1) == 0
    mask = _tensor(entries[0]) if len(entries) == 1 else None
    if mask is not None and mask.dtype == torch.bool and number:
        shaped = entries[0]
        if mask.dim() < known.dim():
            shaped = shaped[(..., *[None] * (known.dim() - mask.dim()))]
        target.tracer.create_proxy("call_method", "masked_fill_", (target, shaped, value), {})
        return
    axis, places = _single(entries, known.dim())
    if not isinstance(places, fx.Proxy) and len(places) <= _FEW:
        for which, place in enumerate(torch.as_tensor(places).tolist()):
            part = target.tracer.create_proxy("call_function", operator.getitem, (target, (*[slice(None)] * axis, place)), {})
            _fill(part, value if number else _taken(value, known.dim(), axis, which))
        return
    name = "index_fill_" if number else "index_copy_"
    moved = value if number else _as_wide(target, axis, places, value)
    target.tracer.create_proxy("call_method", name, (target, axis, places, moved), {})


_FEW = 64
"""Known places that are written one by one, which are views: what lies at a list of places is none."""


def _taken(value: Any, rank: int, axis: int, place: int) -> Any:
    """Record the part of a tensor that goes to one of the places: it is broadcast over what it is assigned to."""
    held = getattr(value, "value", value)
    own = axis - (rank - held.dim())
    if own < 0:
        return value
    return value[(*[slice(None)] * own, place if held.shape[own] > 1 else 0)]


def _single(entries: tuple[Any, ...], rank: int) -> tuple[int, Any]:
    """The one axis that is indexed by a list of places, all others being taken whole."""
    found = [(number, entry) for number, entry in enumerate(entries) if not _is_whole(entry)]
    dots = [number for number, entry in enumerate(entries) if entry is Ellipsis]
    if len(found) == 1 and len(dots) <= 1:
        number, entry = found[0]
        places = _tensor(entry)
        if isinstance(entry, list) and all(type(place) is int for place in entry):
            entry = places = torch.tensor(entry)
        if places is not None and places.dim() == 1 and places.dtype in (torch.int64, torch.int32):
            return number - len(entries) + rank if dots and dots[0] < number else number, entry
    raise TypeError("item assignment by several tensors, or by one that is no list of places, is not recorded")


def _as_wide(target: fx.Proxy, axis: int, places: Any, value: Any) -> Any:
    """A tensor as wide as what it is written over: `index_copy_` does not broadcast."""
    part = target.tracer.create_proxy("call_method", "index_select", (target, axis, places), {})
    held = getattr(value, "value", value)
    if held.shape == part.value.shape:
        return value
    return target.tracer.create_proxy("call_method", "expand_as", (value, part), {})


def _is_basic(entry: Any) -> bool:
    """Whether an entry of an index takes a view: a slice, a number, an axis that is added."""
    if entry is None or entry is Ellipsis or isinstance(entry, slice):
        return True
    if isinstance(entry, fx.Proxy):
        return isinstance(getattr(entry, "value", None), int)
    return isinstance(entry, int) and not isinstance(entry, bool)


def _is_whole(entry: Any) -> bool:
    return entry is Ellipsis or (isinstance(entry, slice) and entry == slice(None))


def _tensor(entry: Any) -> torch.Tensor | None:
    held = getattr(entry, "value", entry)
    return held if isinstance(held, torch.Tensor) else None


def _wrote_already(made: fx.Node, target: fx.Node, index: Any) -> bool:
    """Whether a value is what `x[index] += y` hands back: that wrote into the part by itself."""
    part = made.args[0] if made.args else None
    return made.target in AUGMENTED and isinstance(part, fx.Node) and part.target is operator.getitem and part.args == (target, index)


def _beginning(node: fx.Node) -> fx.Node:
    """Return the node that a part was taken of."""
    while node.target is operator.getitem or node.target is getattr:
        first: Any = node.args[0]
        node = first
    return node
