"""Residual streams: couple, keep, or select from them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from irtool.channels.groups import Pin
from irtool.channels.labels import Labels
from irtool.ir.graph import G, Graph, Node
from irtool.ops.properties import MAKES_CHANNELS


def reads_stream(node: Node) -> bool:
    """Whether a batch norm reads a value that others depend on too, so that its own scales cannot decide alone.

    A convolution read by this batch norm only is the ordinary case and no stream.
    """
    if node.op != "BatchNormalization":
        return False
    value = node.input
    return value.producer is not None and (value.producer.op not in MAKES_CHANNELS or len(value.uses) > 1) and value.producer.op != "Input"


def insert_selects(graph: G, *, shared: bool = False) -> G:
    """A copy of the graph, over the same weights if `shared`, with a channel selection of all channels before every batch norm that reads a stream.

    Given:  %bn = BatchNormalization(%sum, ...)
    Result: %pick = ChannelSelect(%sum); %bn = BatchNormalization(%pick, ...)
    """
    readers = [node for node in graph.nodes if reads_stream(node) and len(node.input.sizes) > 1]
    if not readers:
        return graph
    new = graph.shared() if shared else graph.clone()
    by_name = {node.name: node for node in new.nodes}
    for number, node in enumerate(readers):
        _select(new, by_name[node.name], f"select_{number}")
    new.commit()
    return new


def _select(graph: Graph, node: Node, name: str) -> None:
    """Put a channel selection of all channels, called `name`, in front of a node's first input."""
    device = next((value.data.device for value in graph.params.values() if value.data is not None), torch.device("cpu"))
    index = graph.add_param(f"{name}.index", torch.arange(node.input.sizes[1], device=device))
    pick = graph.insert("ChannelSelect", [node.input, index], before=node, name=name)
    graph.replace_uses(node.input, pick.output, [node])


def stream_pins(labels: Labels, residual: str) -> list[tuple[NDArray[np.int64], Pin]]:
    """Pin what `residual` keeps: nothing for `couple`; streams that additions join, and sources of selections, otherwise."""
    if residual == "couple":
        return []
    pins = []
    for node in labels.graph.nodes:
        if node.op != "Add":
            continue
        met = [labels.of(value).reshape(-1) for value in node.inputs if not value.is_param]
        met = [found[found >= 0] for found in met]
        if sum(bool(found.numel()) for found in met) > 1 and not (len(met) == 2 and torch.equal(met[0], met[1])):
            pins.append((torch.cat(met).numpy(), Pin(f"residual stream (residual={residual!r})", node.location)))
    for node, source, _ in labels.ties:
        pins.append((source[source >= 0].numpy(), Pin(f"read by a channel selection (residual={residual!r})", node.location)))
    return pins
