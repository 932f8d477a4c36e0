"""Operators that only move data: they are run on the labels, or follow from the shapes alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from irtool.ir.graph import Node, Value
from irtool.ops.rules.context import Context, channel_vector, collapse, expand, flatten_others, is_none, none, on_axis, varying
from irtool.ops.rules.lookup import picked
from irtool.ops.rules.opaque import barrier, short_name
from irtool.ops.writes import written

LARGEST = 1 << 24
"""Label tensors above this many entries (128 MiB) are not built: the channels are left alone instead."""


def movement(node: Node, ctx: Context) -> None:
    """Expand (without copying), run the node itself, collapse."""
    tensors = {value: ctx.of(value) for value in node.inputs}
    if all(is_none(labels) for value, labels in tensors.items()):
        for output in node.outputs:
            ctx.put(output, none(len(output.sizes)))
        return
    moved = [value for value in node.inputs if _is_data(node, value)]
    if any(not value.is_param for value in node.inputs if value not in moved):
        if picked(node, ctx):
            return
        barrier(node, ctx, f"{node.callee} moves by an index that is computed")
        return
    if sum(math.prod(value.sizes) for value in moved) > LARGEST:
        for value in moved:
            ctx.pin(node, ctx.of(value).reshape(-1), f"{node.callee} moves too many elements to follow")
        for output in node.outputs:
            ctx.put(output, none(len(output.sizes)))
        return
    if node.op == "Slice" and written(node.output):
        _keep_written(node, ctx)
    if short_name(node.callee) == "unbind":
        for value in moved:
            if varying(ctx.of(value)) == [_axis(node, len(value.sizes))]:
                ctx.pin(node, ctx.of(value).reshape(-1), "unbind takes channels one by one")
    results = _evaluate(node, ctx, {value: expand(tensors[value], value.sizes) for value in moved})
    for output, result in zip(node.outputs, results, strict=True):
        labels = collapse(result)
        ctx.put(output, labels)
        ctx.floor(labels)
        if node.op == "DepthToSpace":  # of fewer channels it deals out other ones to each place of a pixel, so that whole pixels go
            flatten_others(node, ctx, labels, 1)


def _keep_written(node: Node, ctx: Context) -> None:
    """Pin what a write into a slice needs to stay. Of neighbours, what is left are neighbours, too, and so a view that can be written into.

    A channel that is taken alone has to stay for that, channels taken in steps only with all that lie between them.
    """
    value = node.input
    for axis in varying(ctx.of(value)):
        places = on_axis(torch.arange(value.sizes[axis]), axis, len(value.sizes))
        (taken,) = ctx.evaluate(node, {value: expand(places, value.sizes)})
        left = collapse(taken).reshape(-1)
        if left.numel() == 1:
            ctx.pin(node, ctx.of(value).select(axis, int(left[0])).reshape(-1), "a single channel is written in place")
        elif bool((left.diff() != 1).any()):
            ctx.pin(node, ctx.of(value).reshape(-1), "single channels are written in place")


def stretch(node: Node, ctx: Context) -> None:
    """Copies along an axis. As wide as another value (`expand_as`), they go with its channels."""
    movement(node, ctx)
    like = node.inputs[1] if short_name(node.callee) == "expand_as" and len(node.inputs) > 1 else None
    if like is None or like.sizes != node.output.sizes:
        return
    own = (1,) * (len(like.sizes) - len(node.input.sizes)) + node.input.sizes
    free = all(own[axis] == 1 for axis in varying(ctx.of(like)) if axis == varying(ctx.of(like))[-1])
    if ctx.decide(node, "follows", is_none(ctx.of(node.output)) and not is_none(ctx.of(like)) and free):
        ctx.put(node.output, ctx.of(like))


_NUMBERED = frozenset({"arange", "linspace", "eye"})
"""Factories that number the entries they make: fewer channels get other numbers."""


def filled(node: Node, ctx: Context) -> None:
    """One value everywhere (zeros): no channels, but where it is as wide as a tensor whose size it was given, or a multiple of that."""
    for output in node.outputs:
        ctx.put(output, none(len(output.sizes)))
    for name, value in node.operands.items():
        if not name.startswith("count.") or name not in node.attrs:
            continue
        place, (axis, times) = int(name.removeprefix("count.")), node.attrs[name]
        labels = ctx.of(value)
        if short_name(node.callee) in _NUMBERED and axis in varying(labels):
            ctx.pin(node, labels.reshape(-1), "its channels are numbered")
        elif place < len(node.output.sizes) and varying(labels) == [axis] and value not in ctx.more:
            ctx.put(node.output, on_axis(labels.reshape(-1).repeat(times), place, len(node.output.sizes)))
            return


def _evaluate(node: Node, ctx: Context, labels: Mapping[Value, Tensor]) -> Sequence[Tensor]:
    """Run the node on integers; as floats, with -1 as zero, where it takes no integers (im2col, which pads with zeros)."""
    try:
        return ctx.evaluate(node, labels)
    except RuntimeError:
        moved = ctx.evaluate(node, {value: (found + 1).double() for value, found in labels.items()})
        return [found.long() - 1 for found in moved]


def columns(node: Node, ctx: Context) -> None:
    """Windows of an image as columns: each channel once for every place in the window."""
    axis = len(node.output.sizes) - 2
    if (labels := _along(node, ctx, axis)) is not None:
        each = node.output.sizes[axis] // node.input.sizes[axis]
        vector = labels.reshape(-1).repeat_interleave(each) if labels.numel() > 1 else labels
        ctx.put(node.output, on_axis(vector, axis, len(node.output.sizes)))


def images(node: Node, ctx: Context) -> None:
    """The way back: columns are added up to images, so that a channel's places in the window live and die together."""
    axis = len(node.input.sizes) - 2
    if (labels := _along(node, ctx, axis)) is not None:
        if labels.numel() > 1:
            labels = flatten_others(node, ctx, labels.reshape(node.output.sizes[axis], -1), 0)
        ctx.put(node.output, on_axis(labels, axis, len(node.output.sizes)))


def _along(node: Node, ctx: Context, axis: int) -> Tensor | None:
    """Return the labels of what the node reads, if they vary along one axis alone; else the node is a barrier."""
    labels = ctx.of(node.input)
    if any(place != axis for place in varying(labels)):
        barrier(node, ctx, f"{node.callee} works along an axis that carries channels")
        return None
    return labels


def _is_data(node: Node, value: Value) -> bool:
    """Whether an operand is moved, rather than an index that says where to."""
    index = value.dtype is not None and not value.dtype.is_floating_point
    return value is node.input or not index


def stack(node: Node, ctx: Context) -> None:
    """Operands become the rows of a new axis, so that they must stay equally wide."""
    movement(node, ctx)
    labels = ctx.of(node.output)
    if labels.dim() > len(node.input.sizes):  # not hstack or vstack, which make no axis
        axis = _axis(node, labels.dim())
        ctx.balance(node, labels.movedim(axis, 0).reshape(labels.shape[axis], -1))


def shuffle(node: Node, ctx: Context) -> None:
    """A channel shuffle keeps its number of groups, so that they must stay equally wide."""
    movement(node, ctx)
    ctx.balance(node, channel_vector(node, ctx, node.input, 1).reshape(node.attrs["group"], -1))


def reshape(node: Node, ctx: Context) -> None:
    """From the two shapes alone: runs of axes with equal products are reshaped by themselves, runs without channels not at all."""
    value, output = node.input, node.output
    labels = ctx.of(value)
    if is_none(labels):
        ctx.put(output, none(len(output.sizes)))
        return
    shape_in, shape_out, split = [], [], False
    for before, after in matching_axes(value.sizes, output.sizes):
        if any(labels.shape[axis] > 1 for axis in before):
            shape_in += [value.sizes[axis] for axis in before]
            shape_out += [output.sizes[axis] for axis in after]
            split |= len(after) > 1
        else:
            shape_in += [1] * len(before)
            shape_out += [1] * len(after)
    result = collapse(expand(labels, shape_in).reshape(shape_out))
    ctx.put(output, result)
    if split and sum(size > 1 for size in result.shape) > 1:
        ctx.box(node, result)


def matching_axes(before: Sequence[int], after: Sequence[int]) -> list[tuple[range, range]]:
    """Cut two shapes of one element count into the shortest runs of axes with equal products.

    >>> matching_axes((2, 12, 5, 5), (2, 3, 4, 25))
    [(range(0, 1), range(0, 1)), (range(1, 2), range(1, 3)), (range(2, 4), range(3, 4))]
    """
    runs: list[tuple[range, range]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        i0, j0 = i, j
        p = before[i] if i < len(before) else 1
        q = after[j] if j < len(after) else 1
        i, j = min(i + 1, len(before)), min(j + 1, len(after))
        while p != q:
            if (p < q and i < len(before)) or j >= len(after):
                p *= before[i]
                i += 1
            else:
                q *= after[j]
                j += 1
        runs.append((range(i0, i), range(j0, j)))
    return runs


def concat(node: Node, ctx: Context) -> None:
    """Along one axis; the others stay collapsed where all operands agree."""
    rank = len(node.output.sizes)
    axis = _axis(node, rank)
    beside = any(axis in varying(ctx.of(value)) for value in node.inputs if not value.is_param)
    _fill(node, ctx, axis, beside)
    tensors = [_bank(node, ctx, value, axis, beside) for value in node.inputs]
    last = {tuple(varying(labels)[-1:]) for labels in tensors}
    alike = all(labels.shape[axis] == 1 for labels in tensors) and len(last) == 1 and () not in last
    if ctx.decide(node, "rows", alike):
        # Rows of the same channels (tokens, anchors): one set of channels from here on, not one a row.
        tensors = list(torch.broadcast_tensors(*tensors))
        for labels in tensors[1:]:
            if not torch.equal(labels, tensors[0]):
                ctx.unify(node, tensors[0].reshape(-1), labels.reshape(-1))
        ctx.put(node.output, collapse(tensors[0]))
        return
    common = [max(labels.shape[d] for labels in tensors) for d in range(rank)]
    pieces = []
    for value, labels in zip(node.inputs, tensors, strict=True):
        sizes = list(common)
        sizes[axis] = value.sizes[axis]
        pieces.append(expand(labels, sizes))
    ctx.put(node.output, collapse(torch.cat(pieces, axis)))


_FILLERS = frozenset({"zeros", "new_zeros", "zeros_like"})


def _bank(node: Node, ctx: Context, value: Value, axis: int, beside: bool) -> Tensor:
    """An operand's labels; a parameter or constant beside channels has channels of its own along the axis."""
    several = value.is_param and sum(size > 1 for size in value.sizes) > 1 and value.sizes[axis] > 1
    floating = value.dtype is not None and value.dtype.is_floating_point
    if ctx.decide(node, f"bank {value.name}", several and floating and beside):
        return on_axis(ctx.param(value, axis), axis, len(value.sizes))
    return ctx.of(value)


def _fill(node: Node, ctx: Context, axis: int, beside: bool) -> None:
    """Zeros beside channels are channels that the node makes, as padding does: they go with what they meet later.

    So are several beside what has none: the first state of a recurrent convolution, beside the first image.
    """
    for value in node.inputs:
        maker = value.producer
        name = "" if maker is None else short_name(maker.callee)
        lone = name in _FILLERS and len(value.uses) == 1 and is_none(ctx.of(value))
        if maker is not None and ctx.decide(node, f"fills {value.name}", (beside or value.sizes[axis] > 1) and lone):
            ctx.put(value, on_axis(ctx.fresh(maker, value.sizes[axis]), axis, len(value.sizes)))


def _axis(node: Node, rank: int) -> int:
    return int(node.attrs.get("axis", 0)) % rank


def pad(node: Node, ctx: Context) -> None:
    """Padding along an axis that carries channels makes new channels (the option A shortcut of CIFAR ResNets)."""
    labels, value = ctx.of(node.input), node.input
    amounts = pad_amounts(node)
    found = [axis for axis in varying(labels) if amounts.get(axis, (0, 0)) != (0, 0)]
    touched = [axis for axis in range(labels.dim()) if ctx.decide(node, f"pads {axis}", axis in found)]
    if not touched:
        ctx.put(node.output, labels)
        return
    axis = touched[-1]
    before, after = amounts[axis]
    if len(touched) > 1 or before < 0 or after < 0 or node.attrs["mode"] != "constant":
        ctx.pin(node, labels.reshape(-1), f"{node.callee} along an axis that carries channels")
        ctx.put(node.output, none(labels.dim()))
        return
    sizes = [value.sizes[d] if d == axis else size for d, size in enumerate(labels.shape)]
    rows = math.prod(size for d, size in enumerate(sizes) if d != axis)
    made = ctx.fresh(node, rows * (before + after)).reshape([before + after if d == axis else size for d, size in enumerate(sizes)])
    first, rest = made.split([before, after], axis)
    ctx.put(node.output, torch.cat([first, expand(labels, sizes), rest], axis))


def pad_amounts(node: Node) -> dict[int, tuple[int, int]]:
    """Axis -> (before, after)."""
    rank, pads = len(node.input.sizes), node.attrs["pads"]
    return {axis: (pads[axis], pads[rank + axis]) for axis in range(rank)}


def select(node: Node, ctx: Context) -> None:
    """A channel selection that a pass owns: the copies have labels of their own, tied to their sources one way."""
    value, index = node.input, node.operands["index"]
    labels = ctx.of(value)
    copies = ctx.produce(node, index, 0)
    assert index.data is not None
    if labels.shape[1] == 1 and labels.numel() > 1:
        ctx.pin(node, labels.reshape(-1), "a channel selection along another axis than its channels")
    source = channel_vector(node, ctx, value, 1)
    if not is_none(source):
        ctx.tie(node, source[index.data.cpu()], copies)
    ctx.put(node.output, on_axis(copies, 1, labels.dim()))
