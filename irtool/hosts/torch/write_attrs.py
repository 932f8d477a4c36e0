"""Sizes written into a traced program are rewritten from the sizes that its values have after slicing.

One row an operator of the torch host. Sizes that the program computes (`x.size(1) // 2`) are left to it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn
from torch.utils import _pytree as pytree

from irtool.errors import ProofError
from irtool.hosts.torch.arguments import (
    argument,
    computed_sizes,
    filled_with,
    moved_entry,
    of_batch,
    sizes_argument,
    stated_size,
    torch_name,
    unflattened,
    with_sizes,
)  # fmt: skip
from irtool.hosts.torch.modules import set_attribute
from irtool.hosts.torch.tracing.counts import sizes_of
from irtool.ir.graph import Node
from irtool.ir.sizes import Sizes
from irtool.ops.movement import pad_amounts

if TYPE_CHECKING:
    from irtool.hosts.torch.graph import FxGraph

Ints = NDArray[np.int64]


class Literals:
    """Edits a copy of a graph's program.

    Args:
        graph: the graph before slicing.
        module: a copy of its program, parameters already of their new shapes.
        left: what slicing leaves of each value.
    """

    def __init__(self, graph: FxGraph, module: fx.GraphModule, left: Sizes) -> None:
        self.graph, self.module, self.sizes, self.kept, self.groups = graph, module, left.shape, left.kept, left.groups
        self.hosts: dict[str, fx.Node] = {node.name: node for node in module.graph.nodes}
        self._sized = {node.name: node for node in graph.nodes if _lists_sizes(node)}
        self._originals = {node.name: node for node in graph.module.graph.nodes}
        self.edited: list[str] = []
        """Names of nodes whose arguments in the program changed (not attributes of modules)."""

    def edit(self) -> None:
        """Edit every node that needs it."""
        for node in self.graph.nodes:
            editor = EDITORS.get(node.op)
            if editor is not None and any(self.sizes(value) != value.shape for value in (*node.inputs, *node.outputs)):
                editor(self, node)
        if self.edited:
            self.module.graph.lint()
            self.module.recompile()

    def fix_computed(self, host: fx.Node, examples: Mapping[fx.Node, Any]) -> None:
        """A size that the program computes from another tensor (`x.reshape(b, n, y.shape[-1])`) may be wrong after slicing.

        Called while the edited program is read: a computed size of a pruned axis that differs from what the axis has now
        becomes a literal.
        """
        node = self._sized.get(host.name)
        if node is None:
            return
        if node.op == "Pad":
            self._fix_pad(host, node, examples)
            return
        if torch_name(host) == "unflatten":
            self._fix_unflatten(host, node, examples)
            return
        constant = node.op == "Constant"
        key, first, listed = sizes_of(host) if constant else (*sizes_argument(host)[:1], 0, list(sizes_argument(host)[1]))
        new = self.sizes(node.output)
        if not constant and (whole := computed_sizes(host, examples)) is not None:
            self._spell_out(host, node, whole, examples)
            return
        if len(listed) != len(new):
            return
        fixed = [size if isinstance(arg, fx.Node) and examples[arg] != size else arg for arg, size in zip(listed, new, strict=True)]
        if fixed != listed:
            if any(old is not arg and of_batch(arg) for old, arg in zip(fixed, listed, strict=True)):
                raise ProofError("a size that is computed from the batch would become a number", where=node.location)
            self.set_args(node, *(filled_with(host, key, first, fixed) if constant else with_sizes(host, key, fixed)))

    def _spell_out(self, host: fx.Node, node: Node, whole: fx.Node, examples: Mapping[fx.Node, Any]) -> None:
        """The same for `x.view(y.shape[:-1] + (64,))`, whose sizes are one computed tuple: its members one by one, where these are right."""
        found, new = examples[whole], self.sizes(node.output)
        wrong = [axis for axis, (size, right) in enumerate(zip(found, new, strict=True)) if size not in (-1, right)]
        if 0 in wrong and of_batch(whole):
            raise ProofError("a size that is computed from the batch would become a number", where=node.location)
        if not wrong:
            return
        listed: list[Any] = list(new)
        for axis in set(range(len(new))) - set(wrong):
            with self.module.graph.inserting_before(host):
                listed[axis] = self.module.graph.call_function(operator.getitem, (whole, axis))
            examples[listed[axis]] = found[axis]  # type: ignore[index]
        key = next((name for name, value in host.kwargs.items() if value is whole), None)
        self.set_args(node, *((host.args, {**host.kwargs, key: listed}) if key else ((host.args[0], listed), dict(host.kwargs))))

    def _fix_unflatten(self, host: fx.Node, node: Node, examples: Mapping[fx.Node, Any]) -> None:
        """The same for `x.unflatten(2, y.shape[2:])`, whose sizes are those of some axes; one of them may be -1."""
        dim, stated = unflattened(host)
        found = fx.map_arg(stated, examples.__getitem__)
        start = dim % len(node.input.sizes)
        new = self.sizes(node.output)[start : start + len(found)]
        if any(size not in (-1, right) for size, right in zip(found, new, strict=True)):
            self.set_args(node, (host.args[0], dim, tuple(new)), {})

    def _fix_pad(self, host: fx.Node, node: Node, examples: Mapping[fx.Node, Any]) -> None:
        """The same for `F.pad(x, (0, 0, 0, 0, 0, width - x.shape[1]))`: as many channels as are left of those that it adds."""
        stated = host.args[1] if len(host.args) > 1 else host.kwargs.get("pad")
        right = _amounts(self, node)
        if not isinstance(stated, list | tuple) or len(stated) != len(right):
            return
        fixed = [amount if isinstance(arg, fx.Node) and examples[arg] != amount else arg for arg, amount in zip(stated, right, strict=True)]
        if fixed != list(stated):
            kwargs = {key: value for key, value in host.kwargs.items() if key != "pad"}
            self.set_args(node, (host.args[0], fixed, *host.args[2:]), kwargs)

    def value(self, arg: Any) -> Any:
        """An argument as it was before slicing: a literal, or what the program computed for the example inputs."""
        return self.graph.examples[self._originals[arg.name]] if isinstance(arg, fx.Node) else arg

    def literal(self, entry: Any) -> Any:
        """An index entry with its computed bounds as numbers."""
        if isinstance(entry, slice):
            return slice(self.value(entry.start), self.value(entry.stop), self.value(entry.step))
        value = self.value(entry)
        return value if isinstance(value, int) else entry

    def owner(self, node: Node) -> Any:
        """The module that a node calls (its size attributes may be set), or None for a function."""
        host = self.hosts[node.name]
        return self.module.get_submodule(str(host.target)) if host.op == "call_module" else None

    def set_args(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        """Change a node's arguments if they differ."""
        host = self.hosts[node.name]
        kwargs = dict(host.kwargs) if kwargs is None else kwargs
        if (args, kwargs) != (host.args, dict(host.kwargs)):
            host.args, host.kwargs = args, kwargs
            self.edited.append(node.name)


def _lists_sizes(node: Node) -> bool:
    """Whether a call lists the sizes of its result: a factory, or a view."""
    if node.op == "Pad" and node.host.op != "call_module":
        return any(isinstance(arg, fx.Node) for arg in pytree.tree_leaves((node.host.args[1:], node.host.kwargs)))
    viewed = node.op in ("Reshape", "Expand") and node.host.op != "call_module" and torch_name(node.host) in (*_LISTS_SIZES, "unflatten")
    return viewed or node.op == "Constant"


def _reshape(edits: Literals, node: Node) -> None:
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


_LISTS_SIZES = frozenset({"view", "reshape", "_unsafe_view", "expand", "broadcast_to"})


def _set_sizes(edits: Literals, node: Node, host: fx.Node, new: tuple[int, ...]) -> None:
    key, listed = sizes_argument(host)
    if len(listed) == len(new):
        fixed = [stated_size(old, size, before) for old, size, before in zip(listed, new, node.output.sizes, strict=True)]
        if fixed != list(listed):
            edits.set_args(node, *with_sizes(host, key, fixed))


def _expand(edits: Literals, node: Node) -> None:
    host = edits.hosts[node.name]
    if torch_name(host) in ("expand", "broadcast_to", "repeat"):  # an axis of size 1 is repeated as often as it is to be long
        _set_sizes(edits, node, host, edits.sizes(node.output))


def _split(edits: Literals, node: Node) -> None:
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


def _slice(edits: Literals, node: Node) -> None:
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


def _new_index(edits: Literals, node: Node, index: tuple[Any, ...]) -> Any:
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


def _gather(edits: Literals, node: Node) -> None:
    """A constant index over a pruned axis: the positions of what is still there."""
    dim = node.attrs.get("dim", 1)
    axis = dim % len(node.input.sizes) if isinstance(dim, int) else 1
    kept = edits.kept(node.input, axis)
    if kept is not None:
        _move_constant(edits, node, kept, node.input.sizes[axis])


def _move_constant(edits: Literals, node: Node, kept: Ints, size: int) -> None:
    index = next((value for value in node.inputs if value.is_param and value is not node.input), None)
    if index is None or index.data is None or index.data.dim() != 1:
        return
    if index.data.dtype == torch.bool:
        set_attribute(edits.module, index.name, index.data[torch.from_numpy(kept)])
        return
    old = index.data.cpu().numpy() % size
    set_attribute(edits.module, index.name, torch.from_numpy(np.searchsorted(kept, old[np.isin(old, kept)])))


def _select(edits: Literals, node: Node) -> None:
    """An owned selection: its copies that stay, at their sources' new positions."""
    owner, index = edits.owner(node), node.operands["index"]
    assert index.data is not None
    copies = edits.kept(index, 0)
    kept = edits.kept(node.input, 1)
    old = index.data.cpu().numpy()
    old = old if copies is None else old[copies]
    owner.index = torch.from_numpy(old if kept is None else np.searchsorted(kept, old))


def _amounts(edits: Literals, node: Node) -> list[int]:
    """How much is padded after slicing, as torch lists it."""
    new: list[int] = []
    for axis in sorted(pad_amounts(node), reverse=True):
        before, after = pad_amounts(node)[axis]
        kept = edits.kept(node.output, axis)
        if kept is not None and (before or after):
            size = node.input.sizes[axis]
            before, after = int((kept < before).sum()), int((kept >= before + size).sum())
        new += [before, after]
    return new


def _pad(edits: Literals, node: Node) -> None:
    host, new = edits.hosts[node.name], _amounts(edits, node)
    if new == [amount for axis in sorted(pad_amounts(node), reverse=True) for amount in pad_amounts(node)[axis]]:
        return
    owner = edits.owner(node)
    if owner is not None:
        owner.padding = tuple(new)
    else:
        edits.set_args(node, (host.args[0], new, *host.args[2:]), {key: value for key, value in host.kwargs.items() if key != "pad"})


def _filler(edits: Literals, node: Node) -> None:
    """Zeros that are concatenated to channels: as many as are left of them."""
    host, new, old = edits.hosts[node.name], edits.sizes(node.output), node.output.sizes
    key, first, listed = sizes_of(host)
    if len(listed) == len(new):
        sizes = [
            size if size != before and not isinstance(arg, fx.Node) else arg for arg, size, before in zip(listed, new, old, strict=True)
        ]
        edits.set_args(node, *filled_with(host, key, first, sizes))


def _norm_shape(edits: Literals, node: Node) -> None:
    owner, host, shape = edits.owner(node), edits.hosts[node.name], node.attrs["normalized_shape"]
    depth = 1 if isinstance(shape, int) else len(shape)
    new = edits.sizes(node.input)[-depth:]
    if owner is not None:
        owner.normalized_shape = tuple(new)
    elif "normalized_shape" in host.kwargs:
        edits.set_args(node, host.args, {**host.kwargs, "normalized_shape": list(new)})
    elif not isinstance(host.args[1], fx.Node):
        edits.set_args(node, (host.args[0], list(new), *host.args[2:]))


def _conv(edits: Literals, node: Node) -> None:
    """A depthwise convolution has as many groups as input channels; of another whole groups may go."""
    groups = node.attrs.get("groups") or 1
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


def _group_norm(edits: Literals, node: Node) -> None:
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


def _attention(edits: Literals, node: Node) -> None:
    """The default scale is 1 / sqrt(head size): written in with the size before slicing."""
    host, size = edits.hosts[node.name], node.input.sizes[-1]
    if node.attrs.get("scale") is None and edits.sizes(node.input)[-1] != size:
        edits.set_args(node, host.args[:6], {**host.kwargs, "scale": size**-0.5})


EDITORS: dict[str, Callable[[Literals, Node], None]] = {
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
