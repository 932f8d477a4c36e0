"""One line about a layer, a module or a node, by the name that a user gives."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from irtool.channels.labels import Layer
from irtool.errors import LayerError
from irtool.ir.graph import Node

if TYPE_CHECKING:
    from irtool.channels.groups import ChannelGroups


def explain(groups: ChannelGroups, name: str) -> str:
    """A layer's channels, whom it is coupled with, or why it stays; for another node whose channels flow through it; for a
    module its layers.

    Raises:
        LayerError: nothing has that name; the text suggests near ones.
    """
    for family in groups.families:
        for layer in family:
            if name in (layer.node.location, layer.node.name):
                return _layer(groups, layer, family)
    for node in groups.graph.nodes:
        if name in (node.location, node.name) and node.outputs:
            return _node(groups, node, name)
    known = list(dict.fromkeys(layer.node.location for layer in groups.layers))
    inside = [location for location in known if location.startswith((f"{name}.", f"{name}/"))]
    if inside:
        return f"{name}: a module in which {_listed(inside)} make{'s' * (len(inside) == 1)} channels"
    paths = groups.graph.paths()
    if name in paths:
        return f"{name}: a module in which no layer makes channels"
    near = difflib.get_close_matches(str(name), list(dict.fromkeys(known + paths)), 3, 0.4)
    remedy = f"Did you mean {', '.join(near)}?" if near else f"The layers that make channels are {_listed(known)}."
    raise LayerError(f"no layer {name!r}", where="explain", remedy=remedy)


def _layer(groups: ChannelGroups, layer: Layer, family: Sequence[Layer]) -> str:
    found = groups.of(layer.labels.numpy())
    pinned = [g for g in found.tolist() if groups.pinned[g]]
    others = dict.fromkeys(other.node.location for other in family if other is not layer)
    text = f"{layer.node.location}: {layer.labels.numel()} channels in {len(found)} groups"
    if others:
        text += f", pruned together with {', '.join(others)}"
    if pinned:
        text += f"; {len(pinned)} must stay: {groups.reasons[pinned[0]]}"
    return text


def _node(groups: ChannelGroups, node: Node, name: str) -> str:
    """A node that makes no channels: whose channels leave it."""
    what = "a depthwise convolution" if groups.labels.decisions.get((node.name, "depthwise")) else node.op
    flowing = {
        group for output in node.outputs if output.shape is not None for group in groups.of(groups.labels.of(output).reshape(-1).numpy())
    }
    owners = [
        layer.node.location for layer, owned in zip(groups.layers, groups.owned, strict=True) if not flowing.isdisjoint(owned.tolist())
    ]
    if not owners:
        return f"{name}: {what}, makes no channels and none of a layer leave it"
    return f"{name}: {what}, whose channels are those of {_listed(list(dict.fromkeys(owners)))}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
