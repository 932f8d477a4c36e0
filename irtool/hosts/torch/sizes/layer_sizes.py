"""Sizes that torch's own layers keep as attributes, where a traced program has the layer's function in their place (`torch.export`)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import fx, nn

from irtool.hosts.torch.graph import FxGraph
from irtool.hosts.torch.sizes.arguments import argument, torch_name
from irtool.hosts.torch.sizes.resize import sync_attributes
from irtool.ir.graph import Node

_CONVS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_KEPT: dict[str, tuple[str, int]] = {
    **dict.fromkeys(_CONVS, ("groups", 6)),
    "layer_norm": ("normalized_shape", 1),
    "rms_norm": ("normalized_shape", 1),
    "group_norm": ("num_groups", 1),
}
"""Sizes that a function is given and its layer keeps: the name in the layer, and the position in the call."""


def layer_of(node: Node, model: nn.Module) -> str | None:
    """The path of the layer of torch that a call was recorded in, if its size is an attribute of that layer."""
    kept, around = _KEPT.get(torch_name(node.host)), node.host.meta.get("nn_module_stack")
    if kept is None or not around:
        return None
    path = str(next(reversed(around.values()))[0])
    own = dict(model.named_modules(remove_duplicate=False)).get(path)
    ours = own is not None and type(own).__module__.startswith("torch.nn.") and kept[0] in vars(own)
    return path if ours else None


def exported_sizes(source: FxGraph, pruned: FxGraph, edited: list[Node], model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """Each attribute of a layer that the edited calls say anew: the layer, the attribute and its value."""
    new: dict[str, fx.Node] = {host.name: host for host in pruned.module.graph.nodes}
    for node in edited:
        path = layer_of(node, model)
        if path is not None and node.host.name in new:
            key, position = _KEPT[torch_name(node.host)]
            value = argument(new[node.host.name], position, key)
            yield model.get_submodule(path), key, tuple(value) if isinstance(value, list | tuple) else value


def parameter_sizes(model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """Each attribute that says another size than the layer's parameters have (`out_channels`)."""
    for module in model.modules():
        if not module._parameters:
            continue
        twin = copy.copy(module)
        twin.__dict__ = dict(vars(module))
        sync_attributes(twin)
        yield from ((module, key, value) for key, value in vars(twin).items() if isinstance(value, int) and vars(module)[key] != value)
