"""Writes the sizes that slicing leaves into a traced program: new attributes (`irtool.ops.facets.resize`) in the form in which a call states them.

One row an operator whose calls state sizes. Sizes that the program computes (`x.size(1) // 2`) are left to it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from irtool.hosts.torch.modules import set_attribute
from irtool.hosts.torch.sizes.arguments import argument, filled_with, sizes_argument, torch_name, unflattened, with_sizes
from irtool.hosts.torch.sizes.counts import sizes_of
from irtool.hosts.torch.sizes.literals import SizeEdits, torch_pads
from irtool.ir.attributes import Attrs
from irtool.ir.graph import Node, Value
from irtool.ops.facets.resize import Positions, cut, moved, restated

Writer = Callable[[SizeEdits, Node, Attrs], None]


def _reshape(edits: SizeEdits, node: Node, new: Attrs) -> None:
    host, owner, shape = edits.hosts[node.name], edits.owner(node), new["shape"]
    if isinstance(owner, nn.Unflatten):
        dim = owner.dim % len(node.input.sizes)
        owner.unflattened_size = shape[dim : dim + len(owner.unflattened_size)]
    elif owner is None and torch_name(host) == "unflatten":
        _unflatten(edits, node, shape)
    elif owner is None and torch_name(host) in ("view", "reshape", "_unsafe_view"):
        _list_sizes(edits, node, shape)


def _unflatten(edits: SizeEdits, node: Node, shape: Sequence[int]) -> None:
    host = edits.hosts[node.name]
    dim, listed = unflattened(host)
    if not isinstance(listed, fx.Node):  # else looked at when the program has run so far
        start = dim % len(node.input.sizes)
        end = start + len(listed)
        edits.set_args(node, (host.args[0], dim, tuple(restated(listed, node.output.sizes[start:end], shape[start:end]))), {})


def _list_sizes(edits: SizeEdits, node: Node, shape: Sequence[int]) -> None:
    host = edits.hosts[node.name]
    key, listed = sizes_argument(host)
    if len(listed) == len(shape):
        fixed = restated(listed, node.output.sizes, shape)
        if fixed != list(listed):
            edits.set_args(node, *with_sizes(host, key, fixed))


def _expand(edits: SizeEdits, node: Node, new: Attrs) -> None:
    if torch_name(edits.hosts[node.name]) in ("expand", "broadcast_to", "repeat"):  # an axis of size 1 is repeated as often as it is long
        _list_sizes(edits, node, new["shape"])


def _split(edits: SizeEdits, node: Node, new: Attrs) -> None:
    """One size for all parts becomes a list of sizes."""
    host = edits.hosts[node.name]
    if host.op == "call_method":
        host.target = "split"
    else:
        host.target = torch.ops.aten.split_with_sizes.default if isinstance(host.target, torch._ops.OpOverload) else torch.split
    tensor = host.args[0] if host.args else host.kwargs.get("input", host.kwargs.get("tensor"))
    edits.set_args(node, (tensor, list(new["split"]), argument(host, 2, "dim", 0)), {})


def _gather(edits: SizeEdits, node: Node, new: Attrs) -> None:
    held = _held_index(node)
    if held is not None:
        set_attribute(edits.module, held.name, torch.from_numpy(np.asarray(new["index"])))


def _held_index(node: Node) -> Value | None:
    """The parameter or buffer that a node takes its index from."""
    return next((value for value in node.inputs if value.is_param and value is not node.input), None)


def _select(edits: SizeEdits, node: Node, new: Attrs) -> None:
    edits.owner(node).index = torch.from_numpy(new["index"])


def _pad(edits: SizeEdits, node: Node, new: Attrs) -> None:
    """torch lists amounts from the last axis backwards, as many as the call has."""
    pads, host, owner = torch_pads(node, new["pads"]), edits.hosts[node.name], edits.owner(node)
    if pads == torch_pads(node, node.attrs["pads"]):
        return
    if owner is not None:
        owner.padding = tuple(pads)
    else:
        edits.set_args(node, (host.args[0], pads, *host.args[2:]), {key: value for key, value in host.kwargs.items() if key != "pad"})


def _filler(edits: SizeEdits, node: Node, new: Attrs) -> None:
    """Zeros that are concatenated to channels: as many as are left of them."""
    host, shape = edits.hosts[node.name], new["shape"]
    key, first, listed = sizes_of(host)
    if len(listed) == len(shape):
        edits.set_args(node, *filled_with(host, key, first, restated(listed, node.output.sizes, shape)))


def _norm_shape(edits: SizeEdits, node: Node, new: Attrs) -> None:
    """A shape that is computed as a whole is left to the program, and so are sizes of axes that stay."""
    shape, before = new["normalized_shape"], node.input.sizes[node.attrs["axis"] :]
    listed = argument(edits.hosts[node.name], 1, "normalized_shape") if edits.owner(node) is None else None
    if isinstance(listed, list | tuple):
        shape = tuple(old if size == was else size for old, size, was in zip(listed, shape, before, strict=True))
    if not isinstance(listed, fx.Node):
        edits.set_attr(node, "normalized_shape", shape)


def _num_features(edits: SizeEdits, node: Node, new: Attrs) -> None:
    """A layer without weights: torch warns at each call where its number is not that of the channels."""
    owner = edits.owner(node)
    if isinstance(owner, nn.modules.instancenorm._InstanceNorm):
        owner.num_features = new["num_features"]


def _attribute(name: str) -> Writer:
    """A number of the layer, whether the program states it or computes it."""
    return lambda edits, node, new: edits.set_attr(node, name, new[name])


def _scale(edits: SizeEdits, node: Node, new: Attrs) -> None:
    host = edits.hosts[node.name]
    edits.set_args(node, host.args[:6], {**host.kwargs, "scale": new["scale"]})


WRITERS: dict[str, Writer] = {
    "Reshape": _reshape,
    "Expand": _expand,
    "Split": _split,
    "Gather": _gather,
    "ChannelSelect": _select,
    "Pad": _pad,
    "Constant": _filler,
    "LayerNormalization": _norm_shape,
    "RMSNormalization": _norm_shape,
    "Conv": _attribute("group"),
    "ConvTranspose": _attribute("group"),
    "InstanceNormalization": _num_features,
    "GroupNormalization": _attribute("num_groups"),
    "Attention": _scale,
}
"""Writers of an operator's new attributes; not called where there are none."""


def _slice(edits: SizeEdits, node: Node) -> None:
    """`x[:, 3]`, `x[[0, 2]]` and `x[..., None]` take what no Slice of ONNX says, so that entries are read from the call, not from attributes."""
    host = edits.hosts[node.name]
    name, rank = torch_name(host), len(node.input.sizes)
    if name == "getitem":
        index = host.args[1] if isinstance(host.args[1], tuple) else (host.args[1],)
        edits.set_args(node, (host.args[0], _new_index(edits, node, index)))
    elif name in ("narrow", "slice", "select"):
        dim = argument(host, 1, "dim", 0) % rank
        kept = edits.kept(node.input, dim)
        if kept is not None:
            _slice_axis(edits, node, dim, kept)


def _slice_axis(edits: SizeEdits, node: Node, dim: int, kept: Positions) -> None:
    """A call that takes a part of one axis."""
    host, size = edits.hosts[node.name], node.input.sizes[dim]
    name = torch_name(host)
    first = edits.value(argument(host, 2, "start", None) if name != "select" else argument(host, 2, "index"))
    if name == "select":
        edits.set_args(node, (host.args[0], dim, _moved_entry(first, kept, size)), {})
        return
    step = argument(host, 4, "step", 1) if name == "slice" else 1
    first = slice(first, None).indices(size)[0]
    moved = _moved_entry(slice(first, min(first + node.output.sizes[dim] * step, size), step), kept, size)
    if isinstance(moved, slice) and name == "narrow":
        edits.set_args(node, (host.args[0], dim, moved.start, moved.stop - moved.start), {})
    elif isinstance(moved, slice):
        edits.set_args(node, (host.args[0], dim, moved.start, moved.stop, *(() if moved.step is None else (moved.step,))), {})
    else:  # no even steps lead through what is left
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
        new.append(entry if kept is None else _moved_entry(edits.literal(entry), kept, node.input.sizes[axis]))
        if kept is not None and isinstance(entry, fx.Node):
            _move_constant(edits, node, kept, node.input.sizes[axis])
        axis += 1
    return tuple(new) if len(new) > 1 else new[0]


def _moved_entry(entry: Any, kept: Positions, size: int) -> Any:
    """An index entry (an integer, a list, a slice) over a pruned axis, as it is among the positions that stay."""
    if isinstance(entry, int):
        return int(np.searchsorted(kept, entry % size))
    if isinstance(entry, list | tuple) and all(type(item) is int for item in entry):
        return moved(np.array(entry) % size, kept).tolist()
    if not isinstance(entry, slice) or entry == slice(None):
        return entry
    new = cut(entry.start, entry.stop, entry.step or 1, size, kept)
    if isinstance(new, np.ndarray):
        return new.tolist()
    start, stop, step = new
    return slice(start, stop, None if step == 1 else step)


def _move_constant(edits: SizeEdits, node: Node, kept: Positions, size: int) -> None:
    """A constant list or mask as an entry."""
    held = _held_index(node)
    if held is None or held.data is None or held.data.dim() != 1:
        return
    index = held.data.cpu().numpy()
    set_attribute(edits.module, held.name, torch.from_numpy(index[kept] if index.dtype == np.bool_ else moved(index % size, kept)))


OWN: dict[str, Callable[[SizeEdits, Node], None]] = {"Slice": _slice}
"""Operators whose calls say what attributes cannot."""
