"""Views whose channels were cut, at other sizes of the inputs than the example's.

`view(-1, 16 * 5 * 5)` runs on an image of another size, too: the batch takes up what the literal leaves over, and rows hold some of the
channels at more positions. Slicing whole channels means nothing there, so that the pruned program refuses such sizes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import fx

from irtool.hosts.torch.sizes.arguments import sizes_argument, torch_name
from irtool.ir.graph import Node, Value
from irtool.ops.view_axes import ViewAxes, view_axes

_VIEWS = frozenset({"view", "reshape", "_unsafe_view"})
Sizes = Callable[[Value], tuple[int, ...]]


def keep_axes_apart(nodes: Sequence[Node], module: fx.GraphModule, sizes: Sizes) -> list[str]:
    """Let a sliced program refuse sizes at which a view would mix channels with the batch or with positions.

    Args:
        nodes: the graph's nodes before slicing.
        module: the sliced program; edited.
        sizes: the shape of a value after slicing.

    Returns: a note for each view that could.
    """
    hosts = {host.name: host for host in module.graph.nodes}
    notes = []
    for node in nodes:
        if node.op == "Reshape" and node.host.op != "call_module" and torch_name(node.host) in _VIEWS:
            host, found = hosts[node.name], _split(node, sizes)
            listed = sizes_argument(host)[1]
            found = found.merging(listed) if found is not None else None
            if found is not None and _moves(host) and found.open(listed):
                _refuse(module.graph, host, found)
                notes.append(f"{node.location}: refused at sizes of the input at which it would mix channels with other axes")
    if notes:
        module.graph.lint()
        module.recompile()
    return notes


def _split(node: Node, sizes: Sizes) -> ViewAxes | None:
    """Find the first and last axis of a view's channels. None if none were cut."""
    pairs = [(value.sizes, sizes(value)) for value in (node.input, node.output)]
    before, after = ([axis for axis, (old, new) in enumerate(zip(*pair, strict=True)) if old != new] for pair in pairs)
    return view_axes(node.input.sizes, node.output.sizes, (before, after))


def _moves(host: fx.Node) -> bool:
    """Whether what is viewed depends on the inputs: the sizes of weights are what they are."""
    seen, waiting = {host}, [host]
    while waiting:
        for arg in waiting.pop().all_input_nodes:
            if arg.op == "placeholder":
                return True
            if arg not in seen:
                seen.add(arg)
                waiting.append(arg)
    return False


def _refuse(graph: fx.Graph, host: fx.Node, found: ViewAxes) -> None:
    """Flatten by name where that says it all, else compare the sizes around the channels; a second pruning finds them there."""
    listed = sizes_argument(host)[1]
    tensor: Any = host.args[0] if host.args else host.kwargs["input"]
    if list(found.first) == [1, 1] and len(listed) == 2 and listed[0] == -1 and not isinstance(host.target, torch._ops.OpOverload):
        host.target = "flatten" if host.op == "call_method" else torch.flatten
        host.args, host.kwargs = (tensor, 1), {}
        return
    if any(user.op == "call_method" and user.target == "size" and _is_checked(user) for user in host.users):
        return
    sides = {"before": (range(found.first[0]), range(found.first[1]))}
    sides["after"] = (range(found.last[0], found.ranks[0]), range(found.last[1], found.ranks[1]))
    parts = [part for part in found.open(listed) if part != "channels"]
    for part in parts if "channels" in found.open(listed) else parts[:1]:
        with graph.inserting_before(host.next):
            one, other = (_product(graph, held, axes) for held, axes in zip((tensor, host), sides[part], strict=True))
            equal = graph.call_function(operator.eq, (one, other))
            text = f"{host.name}: at this size of the input the pruned channels would be mixed with other axes"
            graph.call_function(torch._assert, (equal, text))


def _is_checked(size: fx.Node) -> bool:
    return any(user.target is operator.eq and any(last.target is torch._assert for last in user.users) for user in size.users)


def _product(graph: fx.Graph, tensor: fx.Node, axes: Sequence[int]) -> Any:
    numbers = [graph.call_method("size", (tensor, axis)) for axis in axes]
    return reduce(lambda one, other: graph.call_function(operator.mul, (one, other)), numbers) if numbers else 1
