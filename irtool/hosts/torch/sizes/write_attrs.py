"""Sizes written into a traced program are rewritten from the sizes that its values have after slicing.

One row an operator of the torch host. Sizes that the program computes (`x.size(1) // 2`) are left to it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from irtool.hosts.torch.modules import set_attribute
from irtool.hosts.torch.sizes.arguments import (
    argument,
    filled_with,
    moved_entry,
    sizes_argument,
    stated_size,
    torch_name,
    unflattened,
    with_sizes,
)  # fmt: skip
from irtool.hosts.torch.sizes.literals import Ints, SizeEdits, amounts, written_amounts
from irtool.hosts.torch.tracing.counts import sizes_of
from irtool.ir.graph import Node


def _reshape(edits: SizeEdits, node: Node) -> None:
    host, new = edits.hosts[node.name], edits.sizes(node.output)
    owner = edits.owner(node)
    if isinstance(owner, nn.Unflatten):
        dim = owner.dim % len(node.input.sizes)
        owner.unflattened_size = new[dim : dim + len(owner.unflattened_size)]
        return
    if owner is not None or torch_name(host) not in ("view", "reshape", "_unsafe_view", "unflatten"):
        return
    if torch_name(host) == "unflatten":
        dim, sizes = unflattened(host)
        if isinstance(sizes, fx.Node):  # looked at when the program has run so far
            return
        start = dim % len(node.input.sizes)
        fixed = tuple(stated_size(old, new[start + i], node.output.sizes[start + i]) for i, old in enumerate(sizes))
        edits.set_args(node, (host.args[0], dim, fixed), {})
        return
    _set_sizes(edits, node, host, new)


def _set_sizes(edits: SizeEdits, node: Node, host: fx.Node, new: tuple[int, ...]) -> None:
    key, listed = sizes_argument(host)
    if len(listed) == len(new):
        fixed = [stated_size(old, size, before) for old, size, before in zip(listed, new, node.output.sizes, strict=True)]
        if fixed != list(listed):
            edits.set_args(node, *with_sizes(host, key, fixed))


def _expand(edits: SizeEdits, node: Node) -> None:
    host = edits.hosts[node.name]
    if torch_name(host) in ("expand", "broadcast_to", "repeat"):  # an axis of size 1 is repeated as often as it is to be long
        _set_sizes(edits, node, host, edits.sizes(node.output))


def _split(edits: SizeEdits, node: Node) -> None:
    host = edits.hosts[node.name]
    if torch_name(host) == "unbind":
        return
    dim = argument(host, 2, "dim", 0)
    axis = dim % len(node.input.sizes)
    new = [edits.sizes(output)[axis] for output in node.outputs]
    if new == [output.sizes[axis] for output in node.outputs]:
        return
    if host.op == "call_method":
        host.target = "split"
    else:
        host.target = torch.ops.aten.split_with_sizes.default if isinstance(host.target, torch._ops.OpOverload) else torch.split
    host.args, host.kwargs = (host.args[0] if host.args else host.kwargs.get("input", host.kwargs.get("tensor")), new, dim), {}
    edits.edited.append(node.name)


def _slice(edits: SizeEdits, node: Node) -> None:
    host = edits.hosts[node.name]
    name, rank = torch_name(host), len(node.input.sizes)
    if name == "getitem":
        index = host.args[1] if isinstance(host.args[1], tuple) else (host.args[1],)
        edits.set_args(node, (host.args[0], _new_index(edits, node, index)))
    elif name in ("narrow", "slice", "select"):
        dim = argument(host, 1, "dim", 0) % rank
        kept = edits.kept(node.input, dim)
        if kept is None:
            return
        first = edits.value(argument(host, 2, "start", None) if name != "select" else argument(host, 2, "index"))
        if name == "select":
            edits.set_args(node, (host.args[0], dim, int(np.searchsorted(kept, first % node.input.sizes[dim]))), {})
            return
        length, size = node.output.sizes[dim], node.input.sizes[dim]
        step = argument(host, 4, "step", 1) if name == "slice" else 1
        first = slice(first, None).indices(size)[0]
        moved = moved_entry(slice(first, min(first + length * step, size), step), kept, size)
        if isinstance(moved, slice):
            edits.set_args(node, (host.args[0], dim, moved.start, moved.stop - moved.start if name == "narrow" else moved.stop), {})
        else:  # no run is left of what was taken in steps
            host.target = operator.getitem
            edits.set_args(node, (host.args[0], (*[slice(None)] * dim, moved)), {})


def _new_index(edits: SizeEdits, node: Node, index: tuple[Any, ...]) -> Any:
    """The entries of `x[...]` with slices and integers over pruned axes moved to where their channels are now."""
    rank = len(node.input.sizes)
    explicit = sum(entry is not None and entry is not Ellipsis for entry in index)
    axis = 0
    new: list[Any] = []
    for entry in index:
        if entry is None or entry is Ellipsis:
            new.append(entry)
            axis += rank - explicit if entry is Ellipsis else 0
            continue
        kept = edits.kept(node.input, axis)
        new.append(entry if kept is None else moved_entry(edits.literal(entry), kept, node.input.sizes[axis]))
        if kept is not None and isinstance(entry, fx.Node):
            _move_constant(edits, node, kept, node.input.sizes[axis])
        axis += 1
    return tuple(new) if len(new) > 1 else new[0]


def _gather(edits: SizeEdits, node: Node) -> None:
    """A constant index over a pruned axis: the positions of what is still there."""
    axis = node.attrs.get("axis", 1)
    kept = edits.kept(node.input, axis)
    if kept is not None:
        _move_constant(edits, node, kept, node.input.sizes[axis])


def _move_constant(edits: SizeEdits, node: Node, kept: Ints, size: int) -> None:
    index = next((value for value in node.inputs if value.is_param and value is not node.input), None)
    if index is None or index.data is None or index.data.dim() != 1:
        return
    if index.data.dtype == torch.bool:
        set_attribute(edits.module, index.name, index.data[torch.from_numpy(kept)])
        return
    old = index.data.cpu().numpy() % size
    set_attribute(edits.module, index.name, torch.from_numpy(np.searchsorted(kept, old[np.isin(old, kept)])))


def _select(edits: SizeEdits, node: Node) -> None:
    """An owned selection: its copies that stay, at their sources' new positions."""
    owner, index = edits.owner(node), node.operands["index"]
    assert index.data is not None
    copies = edits.kept(index, 0)
    kept = edits.kept(node.input, 1)
    old = index.data.cpu().numpy()
    old = old if copies is None else old[copies]
    owner.index = torch.from_numpy(old if kept is None else np.searchsorted(kept, old))


def _pad(edits: SizeEdits, node: Node) -> None:
    host, new = edits.hosts[node.name], amounts(edits, node)
    if new == [amount for both in written_amounts(node).values() for amount in both]:
        return
    owner = edits.owner(node)
    if owner is not None:
        owner.padding = tuple(new)
    else:
        edits.set_args(node, (host.args[0], new, *host.args[2:]), {key: value for key, value in host.kwargs.items() if key != "pad"})


def _filler(edits: SizeEdits, node: Node) -> None:
    """Zeros that are concatenated to channels: as many as are left of them."""
    host, new, old = edits.hosts[node.name], edits.sizes(node.output), node.output.sizes
    key, first, listed = sizes_of(host)
    if len(listed) == len(new):
        sizes = [
            size if size != before and not isinstance(arg, fx.Node) else arg for arg, size, before in zip(listed, new, old, strict=True)
        ]
        edits.set_args(node, *filled_with(host, key, first, sizes))


def _norm_shape(edits: SizeEdits, node: Node) -> None:
    owner, host = edits.owner(node), edits.hosts[node.name]
    new = edits.sizes(node.input)[node.attrs["axis"] :]
    if owner is not None:
        owner.normalized_shape = tuple(new)
    elif "normalized_shape" in host.kwargs:
        edits.set_args(node, host.args, {**host.kwargs, "normalized_shape": list(new)})
    elif not isinstance(host.args[1], fx.Node):
        edits.set_args(node, (host.args[0], list(new), *host.args[2:]))


def _conv(edits: SizeEdits, node: Node) -> None:
    """A depthwise convolution has as many groups as input channels; of another whole groups may go."""
    groups = node.attrs["group"]
    new, owner, host = edits.groups(node), edits.owner(node), edits.hosts[node.name]
    if groups <= 1 or new == groups:
        return
    if owner is not None:
        owner.groups = new
        return
    position = {"conv_transpose1d": 6, "conv_transpose2d": 6, "conv_transpose3d": 6, "convolution": 8}.get(torch_name(host), 6)
    if "groups" in host.kwargs:
        edits.set_args(node, host.args, {**host.kwargs, "groups": new})
    elif not isinstance(host.args[position], fx.Node):
        edits.set_args(node, (*host.args[:position], new, *host.args[position + 1 :]))


def _group_norm(edits: SizeEdits, node: Node) -> None:
    """Group norm with a channel a group stays that."""
    number = node.attrs["num_groups"]
    if number != node.input.sizes[1]:
        host = edits.hosts[node.name]
        if len(host.args) > 1 and isinstance(host.args[1], fx.Node):  # computed from the channels: as many groups as there were
            edits.set_args(node, (host.args[0], number, *host.args[2:]), dict(host.kwargs))
        return
    new, owner, host = edits.sizes(node.input)[1], edits.owner(node), edits.hosts[node.name]
    if owner is not None:
        owner.num_groups = new
    else:
        edits.set_args(node, (host.args[0], new, *host.args[2:]), dict(host.kwargs))


def _attention(edits: SizeEdits, node: Node) -> None:
    """The default scale is 1 / sqrt(head size): written in with the size before slicing."""
    host, size = edits.hosts[node.name], node.input.sizes[-1]
    if node.attrs.get("scale") is None and edits.sizes(node.input)[-1] != size:
        edits.set_args(node, host.args[:6], {**host.kwargs, "scale": size**-0.5})


EDITORS: dict[str, Callable[[SizeEdits, Node], None]] = {
    "Reshape": _reshape,
    "Expand": _expand,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "ChannelSelect": _select,
    "Pad": _pad,
    "Constant": _filler,
    "LayerNormalization": _norm_shape,
    "RMSNormalization": _norm_shape,
    "Conv": _conv,
    "ConvTranspose": _conv,
    "GroupNormalization": _group_norm,
    "Attention": _attention,
}
