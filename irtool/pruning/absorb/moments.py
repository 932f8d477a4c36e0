"""Mean of each entry of a value: means run through the graph beside the labels.

A batch norm says that its output has mean beta and variance gamma^2 over the data it was trained on; taken as normal,
that gives the mean after any activation (in closed form for ReLU). What is constant is known exactly, whatever the statistics say: the
outputs of filters that are zero (by a mask) or that read constants alone, and the batch norms behind them. What moves or averages entries is run on the means
themselves, so that all of its options count. Where no batch norm speaks, or an operator is none of these, the mean is
unknown (NaN), and calibration data can supply it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from irtool.ir.graph import Graph, Node, Value
from irtool.ops.facets.moments import Found, Moments, shrunk, unknown
from irtool.ops.properties import TELLS_MOMENTS
from irtool.ops.spec import spec_of
from irtool.ops.writes import written_through


def expectations(graph: Graph, *, constant: bool = False) -> dict[Value, Moments]:
    """Mean and variance of every entry of every value, as far as batch norms tell.

    The entries that an average or a maximum is taken over are held to be alike, which is exact for channels that are constant.

    Args:
        graph: the graph.
        constant: as if all batch norms gave their mean everywhere: means are then exact.
    """
    real = expectations(graph) if constant else {}
    found: dict[Value, Moments] = {}
    with graph.evaluating(), torch.no_grad():
        for node in graph.nodes:
            # A batch norm gives its mean: what its input then is, though constant here, is none of the data's.
            known = [real[node.output]] if real and node.op == "BatchNormalization" else _moments(graph, node, found)
            for place, output in enumerate(node.outputs):
                mean, var = known[place] if place < len(known) and _fits(known[place], output) else unknown(output)
                found[output] = (shrunk(mean), shrunk(torch.where(mean.isnan(), mean, 0) if constant else var))
    return found


def _moments(graph: Graph, node: Node, found: Found) -> Sequence[Moments]:
    rule = spec_of(node.op).moments
    if rule is None or "out" in node.operands or any(0 in value.sizes for value in (*node.inputs, *node.outputs)):
        return ()
    silent = all(bool(found[value][0].isnan().all()) for value in node.inputs if value in found)
    return () if silent and node.op not in TELLS_MOMENTS else rule(graph, node, found) or ()


def _fits(moments: Moments, output: Value) -> bool:
    """Whether there are moments of the value's rank and sizes, and nothing writes into the value afterwards."""
    sizes = output.sizes
    shapes = [tensor.shape for tensor in moments]
    return all(
        len(shape) == len(sizes) and all(own in (1, size) for own, size in zip(shape, sizes, strict=True)) for shape in shapes
    ) and not written_through(output)
