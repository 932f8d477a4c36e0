"""Entries that are picked by an index that is computed, along axes that carry no channels: tokens, places, images of a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from irtool.ir.graph import Node, Value
from irtool.ops.rules.context import Context, collapse, expand, is_none, on_axis, varying
from irtool.ops.rules.opaque import short_name
from irtool.ops.rules.stretched import follow

_LARGEST = 1 << 22
"""Entries of a value above which no index is tried on its labels."""
_BY_ENTRY = frozenset({"gather", "take_along_dim"})
"""Operators whose index says for each entry which one it is, so that it is as wide as what is picked from."""


def picked(node: Node, ctx: Context) -> bool:
    """Whether what a node picks does not hang on its index as far as channels go: then the result has the channels of what it reads.

    That is so if other indices pick the same of each axis that channels lie along. They are tried on these axes' places.
    """
    value = node.input
    indices = [other for other in node.inputs[1:] if not other.is_param]
    ready = node.op in ("Gather", "Slice") and not value.is_param and value not in ctx.more and math.prod(value.sizes) <= _LARGEST
    ready = ready and all(other.is_param or not _is_real(other) for other in node.inputs[1:]) and len(indices) == len(node.inputs) - 1
    if not ctx.decide(node, "picks by what is computed", ready and _keeps_axes(node, ctx, value, indices)):
        return False
    if short_name(node.callee) in _BY_ENTRY:
        if not _index_follows(node, ctx, value, indices[0]):
            return False
    elif any(not is_none(ctx.of(index)) for index in indices):
        return False
    (result,) = ctx.evaluate(node, {value: expand(ctx.of(value), value.sizes), **_others(indices, whole=True)})
    ctx.put(node.output, collapse(result))
    return True


def _is_real(value: Value) -> bool:
    """Whether a value is no index."""
    return value.dtype is None or value.dtype.is_floating_point


def _keeps_axes(node: Node, ctx: Context, value: Value, indices: Sequence[Value]) -> bool:
    """Whether the places along each axis that labels vary along come out along one axis, whatever the index picks.

    An index along such an axis itself would pick one place everywhere, and a mask over it other places than another mask.
    """
    for axis in varying(ctx.of(value)):
        places = on_axis(torch.arange(value.sizes[axis]), axis, len(value.sizes)).expand(value.sizes)
        try:
            found = [ctx.evaluate(node, {value: places, **_others(indices, whole=whole)})[0] for whole in (True, False)]
        except (RuntimeError, IndexError):  # an index of a form that is not known here
            return False
        if not torch.equal(*map(collapse, found)) or sum(size > 1 for size in collapse(found[0]).shape) != 1:
            return False
    return len(node.outputs) == 1


def _others(indices: Sequence[Value], *, whole: bool) -> dict[Value, Tensor]:
    """Other indices of the same form: numbers that are 0 everywhere; a mask that takes all, or the last entry alone."""
    made = {index: torch.full(index.sizes, whole if index.dtype is torch.bool else 0) for index in indices}
    for mask in made.values():
        if mask.dtype is torch.bool:
            mask.view(-1)[-1:] = True
    return made


def _index_follows(node: Node, ctx: Context, value: Value, index: Value) -> bool:
    """Whether an index for each entry loses the channels that go: it has them itself, or is made of copies along them."""
    labels = ctx.of(value)
    if not varying(labels) or all(size == 1 for axis, size in enumerate(index.sizes) if axis in varying(labels)):
        return True  # one for all of them
    if any(index.sizes[axis] != value.sizes[axis] for axis in varying(labels)):
        return False
    own = ctx.of(index)
    if is_none(own):
        return follow(node, ctx, index, labels)
    if own.shape != labels.shape:
        return False
    ctx.unify(node, own.reshape(-1), labels.reshape(-1))
    return True
