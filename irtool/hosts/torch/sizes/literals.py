"""The sizes that a traced program states, before and after slicing: read and edited by the rows of `write_attrs`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import fx
from torch.utils import _pytree as pytree

from irtool.errors import ProofError
from irtool.hosts.torch.sizes.arguments import computed_sizes, filled_with, of_batch, sizes_argument, torch_name, unflattened, with_sizes
from irtool.hosts.torch.sizes.counts import sizes_of
from irtool.hosts.torch.written import field_of, write_argument
from irtool.ir.attributes import Attrs
from irtool.ir.graph import Node
from irtool.ir.sizes import Sizes
from irtool.ops.spec import resized

if TYPE_CHECKING:
    from irtool.hosts.torch.graph import FxGraph

LISTS_SIZES = frozenset({"view", "reshape", "_unsafe_view", "expand", "broadcast_to"})
"""Views that list the sizes of their result."""


class SizeEdits:
    """Edits a copy of a graph's program.

    Args:
        graph: the graph before slicing.
        module: a copy of its program, parameters already of their new shapes.
        left: what slicing leaves of each value.
    """

    def __init__(self, graph: FxGraph, module: fx.GraphModule, left: Sizes) -> None:
        self.graph, self.module, self.left, self.sizes, self.kept = graph, module, left, left.shape, left.kept
        self.hosts: dict[str, fx.Node] = {node.name: node for node in module.graph.nodes}
        self._sized = {node.name: node for node in graph.nodes if _lists_sizes(node)}
        self._originals = {node.name: node for node in graph.module.graph.nodes}
        self.edited: list[str] = []
        """Names of nodes whose arguments in the program changed (not attributes of modules)."""

    def edit(
        self, writers: Mapping[str, Callable[[SizeEdits, Node, Attrs], None]], own: Mapping[str, Callable[[SizeEdits, Node], None]]
    ) -> None:
        """Edit every node that needs it.

        Args:
            writers: how new attributes of an operator are written.
            own: what edits an operator whose attributes do not say all.
        """
        for node in self.graph.nodes:
            if node.op in own and any(self.sizes(value) != value.shape for value in (*node.inputs, *node.outputs)):
                own[node.op](self, node)
            elif node.op in writers and (new := resized(node, self.left)):
                writers[node.op](self, node, new)
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
        """Put sizes right in `x.view(y.shape[:-1] + (64,))`, whose sizes are one computed tuple: its members one by one, where these are right."""
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
        """Put sizes right in `x.unflatten(2, y.shape[2:])`, whose sizes are those of some axes; one of them may be -1."""
        dim, stated = unflattened(host)
        found = fx.map_arg(stated, examples.__getitem__)
        start = dim % len(node.input.sizes)
        new = self.sizes(node.output)[start : start + len(found)]
        if any(size not in (-1, right) for size, right in zip(found, new, strict=True)):
            self.set_args(node, (host.args[0], dim, tuple(new)), {})

    def _fix_pad(self, host: fx.Node, node: Node, examples: Mapping[fx.Node, Any]) -> None:
        """Put the amounts right in `F.pad(x, (0, 0, 0, 0, 0, width - x.shape[1]))`: as many channels as are left of those that it adds."""
        stated = host.args[1] if len(host.args) > 1 else host.kwargs.get("pad")
        right = torch_pads(node, resized(node, self.left).get("pads", node.attrs["pads"]))
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

    def set_attr(self, node: Node, name: str, value: Any) -> None:
        """Change an attribute of a layer: of its module, or an argument of its function."""
        host, owner = self.hosts[node.name], self.owner(node)
        if owner is not None:
            key = field_of(owner, name)
            if key is not None:
                setattr(owner, key, value)
            return
        before = host.args, dict(host.kwargs)
        if write_argument(host, name, value) and before != (host.args, dict(host.kwargs)):
            self.edited.append(node.name)

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
    viewed = node.op in ("Reshape", "Expand") and node.host.op != "call_module" and torch_name(node.host) in (*LISTS_SIZES, "unflatten")
    return viewed or node.op == "Constant"


def torch_pads(node: Node, pads: Sequence[int]) -> list[int]:
    """Amounts of padding as the call lists them: those before and after each axis together, from the last axis backwards."""
    rank, listed = len(node.input.sizes), node.given.get("pad", node.given.get("padding", ()))
    count = rank - 2 if isinstance(listed, int) else len(listed) // 2
    return [amount for axis in range(rank - 1, rank - 1 - count, -1) for amount in (pads[axis], pads[rank + axis])]
