"""Additions of a constant: to a layer's bias if nothing else reads it, else by a bias or an Add of the layer's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from irtool.channels.labels import Labels
from irtool.ir.graph import G, Graph, Node
from irtool.pruning.absorb.contribution import channel_axis, outputs, weight_of


def calls_of(graph: Graph, node: Node) -> tuple[Node, ...]:
    """All calls of a layer that share one bias, or one place for it; the node alone if its constant is its own."""
    weight, bias, module = weight_of(node), node.get("bias"), graph.holder(node)
    assert weight is not None
    if bias is not None and bias.is_param:
        calls = tuple(dict.fromkeys(use for use in weight.uses if use.get("bias") is bias))
        if set(bias.uses) <= set(calls):
            return calls
    if module is None or (bias is not None and any(graph.holder(use) is None for use in bias.uses)):
        return (node,)
    return tuple(dict.fromkeys(use for use in weight.uses if graph.holder(use) is module))


def no_gains(labels: Labels, names: Iterable[str]) -> dict[str, Tensor]:
    """Zeros for the layers of these names: they get the biases that absorbing would give them, and no constant."""
    nodes = {node.name: node for node in labels.graph.nodes}
    return {name: torch.zeros(outputs(nodes[name])) for name in names}


def add_biases(graph: G, labels: Labels, keep: NDArray[np.bool_], gains: Mapping[str, Tensor]) -> G:
    """Add to the biases of a sliced graph, in place, what its layers lost; layers without a bias get one.

    Returns the graph read anew, since a new bias is a new parameter.
    """
    sources = {node.name: node for node in labels.graph.nodes}
    sliced = {}
    for name, gain in gains.items():
        # Output channels keep their order: only reading a parameter can reorder it, and outputs are made, not read.
        own = labels.of(sources[name].output).reshape(-1)
        sliced[name] = gain[torch.from_numpy(keep)[own]] if int(own[0]) >= 0 else gain
    return add_to_biases(graph, sliced)


def outputs_of(graph: Graph, name: str) -> int:
    """Count the channels that the layer of this name makes."""
    return outputs(graph.node(name))


def add_to_biases(graph: G, gains: Mapping[str, Tensor]) -> G:
    """Add to the biases of layers, in place; layers without a bias get one.

    Args:
        graph: whose layers they are; it is read anew, since a new bias is a new parameter.
        gains: for a layer's name what each of its outputs gains, float64, shape (outputs,).
    """
    by_name = {node.name: node for node in graph.nodes}
    for name, gain in gains.items():
        _add(graph, by_name[name], gain)
    graph.commit()
    return graph


def _add(graph: Graph, node: Node, gain: Tensor) -> None:
    bias, weight, name = node.get("bias"), weight_of(node), f"absorbed_{node.name}"
    assert weight is not None
    assert weight.data is not None
    total = gain.to(weight.data)
    if bias is not None and bias.data is not None:
        total = (bias.data.double() + gain.to(bias.data.device)).to(bias.data.dtype)
        if set(bias.uses) <= set(calls_of(graph, node)):
            graph.set_param(bias.name, total)
            return
    if graph.takes_own_bias(node):
        graph.give_bias(node, total, name)
    else:
        after = len(node.output.sizes) - 1 - channel_axis(node, node.output)
        constant = graph.add_param(name, gain.to(weight.data).reshape([-1] + [1] * after))
        added = graph.insert("Add", [node.output, constant], after=node, name=f"{node.name}.bias")
        graph.replace_uses(node.output, added.output)
