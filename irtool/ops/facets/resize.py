"""Sizes and positions that a program states, after slicing: one rule an operator, for every host.

A rule reads a node's attributes (in the vocabulary of `irtool.ir.attributes`) and the sizes that slicing leaves, and returns the attributes
that are new. A host writes them in its own form, as far as its programs state them at all. Beside attributes of `Node.attrs`, rules name
what some hosts state though the shapes tell it:

- `shape`: the sizes of the result;
- `split`: the size of each part;
- `normalized_shape`: the sizes of the axes that a norm covers;
- `num_features`: the channels of an instance norm;
- `index`: the entries of a constant index, an array;
- `cuts`: for each pruned axis of a slice (start, end, step), or an array of positions where no even steps lead through them.

Where a program computes an attribute, the computed value may change with the sizes: rules return the right one whether or not it differs
from what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irtool.ir.attributes import Attrs
from irtool.ir.graph import Node
from irtool.ir.sizes import Sizes
from irtool.ops.windows import first_space

Rule = Callable[[Node, Sizes], Attrs]
Positions = NDArray[np.intp]
Cut = tuple[int, int | None, int]
"""Start, end and step along an axis; an end of None is the last entry in the direction of the step."""


def nothing(node: Node, sizes: Sizes) -> Attrs:
    """An operator that states no size."""
    return {}


def moved(entries: NDArray[Any], kept: Positions) -> Positions:
    """Return where the entries that stay are now.

    Args:
        entries: positions before slicing, of any order, any number of times.
        kept: the positions that stay, ascending.
    """
    return np.searchsorted(kept, entries[np.isin(entries, kept)])


def cut(start: int | None, end: int | None, step: int, size: int, kept: Positions) -> Cut | Positions:
    """Return the slice of what stays along an axis that takes the entries which a slice took of all; their positions if none does.

    Args:
        start, end, step: the slice, as Python has it.
        size: of the axis before slicing.
        kept: the positions that stay, ascending.
    """
    new = moved(np.arange(size)[slice(start, end, step)], kept)
    if not new.size:
        return 0, 0, 1
    gaps = np.diff(new)
    by = int(gaps[0]) if gaps.size else (1 if step > 0 else -1)
    if (gaps != by).any():
        return new
    behind = int(new[-1]) + (1 if by > 0 else -1)
    is_last = int(new[-1]) + by >= kept.size if by > 0 else behind < 0
    return int(new[0]), None if is_last and (end is None or by < 0) else behind, by


def restated(listed: Sequence[Any], before: Sequence[int], after: Sequence[int]) -> list[Any]:
    """Return sizes as a program lists them: a number that stated the size before states the size after; -1 and computed sizes stay."""
    return [new if isinstance(old, int) and old == was else old for old, was, new in zip(listed, before, after, strict=True)]


def result(node: Node, sizes: Sizes) -> Attrs:
    """Return the shape of the result."""
    return {"shape": sizes.shape(node.output)}


def split(node: Node, sizes: Sizes) -> Attrs:
    """Return the size of each part, if any of them changes; nothing for `unbind`, whose parts lack the axis."""
    axis = node.attrs["axis"]
    if any(len(output.sizes) != len(node.input.sizes) for output in node.outputs):
        return {}
    new = tuple(sizes.shape(output)[axis] for output in node.outputs)
    return {} if new == tuple(output.sizes[axis] for output in node.outputs) else {"split": new}


def slices(node: Node, sizes: Sizes) -> Attrs:
    """Return the bounds over each pruned axis, moved to where its entries are now."""
    cuts: dict[int, Cut | Positions] = {}
    for axis, start, end, step in zip(*(node.attrs.get(name, ()) for name in ("axes", "starts", "ends", "steps")), strict=True):
        kept = sizes.kept(node.input, axis)
        if kept is not None:
            cuts[axis] = cut(start, end, step, node.input.sizes[axis], kept)
    return {"cuts": cuts} if cuts else {}


def gather(node: Node, sizes: Sizes) -> Attrs:
    """Return the entries of a constant index over a pruned axis: the positions of what is still there, of a mask its entries."""
    axis = node.attrs.get("axis", 1)
    kept = sizes.kept(node.input, axis)
    found = next((held for value in node.inputs[1:] if (held := sizes.constant(value)) is not None), None)
    if kept is None or found is None or found.dim() > 1:
        return {}
    index = found.cpu().numpy()
    if index.dtype == np.bool_:
        return {"index": index[kept]}
    index = index % node.input.sizes[axis]
    return {"index": np.searchsorted(kept, index) if index.ndim == 0 else moved(index, kept)}


def select(node: Node, sizes: Sizes) -> Attrs:
    """Return the index of a selection that a pass owns: its copies that stay, at their sources' new positions."""
    value = node.operands["index"]
    assert value.data is not None
    copies, kept, index = sizes.kept(value, 0), sizes.kept(node.input, 1), value.data.cpu().numpy()
    index = index if copies is None else index[copies]
    return {"index": index if kept is None else np.searchsorted(kept, index)}


def pad(node: Node, sizes: Sizes) -> Attrs:
    """Return the amounts of padding before each axis, then after: as many entries as are left of those that it adds."""
    rank, pads = len(node.input.sizes), list(node.attrs["pads"])
    for axis, size in enumerate(node.input.sizes):
        kept = sizes.kept(node.output, axis)
        before, after = pads[axis], pads[rank + axis]
        if kept is not None and (before or after):
            pads[axis], pads[rank + axis] = int((kept < before).sum()), int((kept >= before + size).sum())
    return {"pads": tuple(pads)}


def norm_shape(node: Node, sizes: Sizes) -> Attrs:
    """Return the sizes of the axes that a norm covers."""
    return {"normalized_shape": sizes.shape(node.input)[node.attrs["axis"] :]}


def conv(node: Node, sizes: Sizes) -> Attrs:
    """Return the groups of a convolution: of a depthwise one as many as channels, of another one those that are left."""
    return {"group": sizes.groups(node)} if node.attrs["group"] > 1 else {}


def group_norm(node: Node, sizes: Sizes) -> Attrs:
    """Return the groups of a norm: as many as channels where each has its own, else as many as there were."""
    groups = node.attrs["num_groups"]
    return {"num_groups": sizes.shape(node.input)[1] if groups == node.input.sizes[1] else groups}


def instance_norm(node: Node, sizes: Sizes) -> Attrs:
    """Return the number of channels of an instance norm, which one without weights states all the same."""
    return {"num_features": sizes.shape(node.input)[first_space(node, len(node.input.sizes)) - 1]}


def attention(node: Node, sizes: Sizes) -> Attrs:
    """Return the scale of attention that was left to its default, 1 / sqrt(head size), where the size of a head changes."""
    size = node.input.sizes[-1]
    stays = node.attrs.get("scale") is not None or sizes.shape(node.input)[-1] == size
    return {} if stays else {"scale": size**-0.5}
