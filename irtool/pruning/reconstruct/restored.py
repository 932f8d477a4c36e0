"""The original with refitted values where channels stay: masked, it must give what the small graph gives.

Refitting changes values alone. So the small graph can be shown right as slicing is: each refitted entry is put back into
the original, at the place that it was sliced from, and channels that went are zeroed wherever they flow.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from irtool.ir.graph import G, Graph, Node
from irtool.pruning.absorb.contribution import channel_axis
from irtool.pruning.reconstruct.refit import kept_outputs
from irtool.pruning.slicing.slicing import Slicing


def is_refitted(graph: Graph, original: Graph) -> bool:
    """Whether a graph was made from the other by pruning and refitting."""
    return any(step["step"] == "reconstruct" for step in graph.history[len(original.history) :])


def restored(slicing: Slicing[G], refitted: G) -> tuple[G, dict[str, Tensor]]:
    """The original with the refitted values, and what the outputs of layers gain that were given a bias, by name.

    Args:
        slicing: the proven slicing that led to the sliced graph.
        refitted: that graph, refitted.
    """
    reference = cast(G, slicing.labels.graph.clone())
    for name, value in refitted.params.items():
        own = reference.params.get(name)
        if own is None or own.data is None or value.data is None or not value.data.is_floating_point():
            continue
        places = slicing.sliced(name, torch.arange(own.data.numel(), device=own.data.device).reshape(own.data.shape))
        if places.shape == value.data.shape:
            data = own.data.detach().clone().flatten()
            data[places.flatten()] = value.data.detach().flatten()
            reference.set_param(name, data.reshape(own.data.shape))
    names = [name for step in refitted.history if step["step"] == "reconstruct" for name in step["biases"]]
    return reference, {name: _gain(slicing, reference.node(name), refitted.node(name)) for name in names}


def _gain(slicing: Slicing[Any], original: Node, node: Node) -> Tensor:
    """Return the difference between a layer's new bias and the original's, in the shape of the original's output."""
    axis = channel_axis(original, original.output)
    kept = kept_outputs([slicing], node)
    own, bias = original.get("bias"), _bias(node)
    gain = torch.zeros(original.output.sizes[axis], dtype=torch.float64)
    kept = torch.arange(len(gain)) if kept is None else kept
    gain[kept] = bias.expand(len(kept)).double().cpu()
    if own is not None and own.data is not None:
        gain[kept] -= own.data.double().cpu().reshape(-1).expand(len(gain))[kept]
    return gain.reshape([-1] + [1] * (len(original.output.sizes) - 1 - axis))


def _bias(node: Node) -> Tensor:
    """A layer's bias; where the operator has no place for one, the constant that is added to its output."""
    bias = node.get("bias")
    if bias is None or bias.data is None:
        bias = next(value for value in node.output.uses[0].inputs if value.is_param)
    assert bias.data is not None
    return bias.data.detach().reshape(-1)
