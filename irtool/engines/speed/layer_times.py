"""The time of each layer as a function of its widths, from samples that were timed on this machine.

The time of a convolution between `a` and `b` channels is fitted as `t0 + t1 a + t2 b + t3 a b`, no coefficient below zero, by least squares
of the relative error over a few widths; that of one which loses whole groups is linear in them. An element-wise operator's is proportional
to its elements.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from math import prod

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from irtool.engines.speed.samples import ELEMENTWISE, LAYERS, MOST_WEIGHTS, Sample
from irtool.engines.speed.stopwatch import Stopwatch
from irtool.ir.graph import Graph, Node, Value
from irtool.ops.facets.macs import Product

Term = tuple[float, Product]
"""Milliseconds for each unit of a product of axis lengths."""
_SHARES = ((1.0, 1.0), (0.5, 1.0), (1.0, 0.5), (0.5, 0.5), (0.25, 0.25))
_ALONE = (1.0, 0.75, 0.5, 0.25)
"""Parts of a layer's widths that are timed: of inputs and outputs, and of both alike where they are tied."""
_SMALL, _LARGE = (64, 28, 28), (64, 112, 112)
_FREE = ("Input", "Output", "Reshape", "Flatten", "Dropout", "StochasticDepth", "Identity", "Constant")


def layer_terms(graph: Graph, watch: Stopwatch, whole: Collection[str] = ()) -> list[Term]:
    """The time of a graph at batch 1 as a sum of products of axis lengths, in milliseconds.

    What an engine fuses into the layer before costs nothing here; operators of unknown kind are left out.

    Args:
        graph: the graph.
        watch: times what it has not timed before.
        whole: names of the grouped convolutions that lose whole groups, in place of channels of each.
    """
    layers = {node: _widths(found, node.name in whole) for node in graph.nodes if (found := sample_of(node)) is not None}
    plain = [Sample(op, size) for op in ELEMENTWISE for size in (_SMALL, _LARGE)]
    times = watch.times([*(one for some in layers.values() for one in some), *plain])
    rates = {(sample.op, sample.size): found / prod(sample.size) for sample, found in times.items() if sample.op in ELEMENTWISE}
    terms: list[Term] = []
    for node in graph.nodes:
        if node in layers:
            terms += _fitted(node, {sample: times[sample] for sample in layers[node] if sample in times}, node.name in whole)
        else:
            terms += _by_elements(node, rates)
    return terms


def sample_of(node: Node) -> Sample | None:
    """The layer as it stands; None for what is none, or has no weight of its own."""
    weight = node.get("weight")
    if node.op not in LAYERS or weight is None or not weight.is_param or node.input.is_param or node.input.shape is None:
        return None
    if node.op == "Gemm":
        if node.operands["input"].is_param:
            return None
        rows = prod(node.output.sizes[1:-1])
        return Sample("Gemm", (), inputs=node.operands["input"].sizes[-1], outputs=node.output.sizes[-1]) if rows == 1 else None
    inputs, outputs = node.input.sizes[1], node.output.sizes[1]
    size, kernel = node.input.sizes[2:], weight.sizes[2:]
    groups = node.attrs.get("group", 1)
    stride, padding, dilation = (node.attrs[name][: len(size)] for name in ("strides", "pads", "dilations"))
    depthwise = groups > 1 and groups == inputs == outputs
    return Sample(node.op, size, kernel, stride, padding, dilation, 0 if depthwise else groups, inputs, outputs)


def _widths(sample: Sample, whole: bool) -> list[Sample]:
    """The sample at some widths, or with some of its groups; narrower ones of a layer with very many weights."""
    if whole:
        counts = dict.fromkeys(max(round(sample.groups * share), 1) for share in _ALONE)
        widths = sample.inputs // sample.groups, sample.outputs // sample.groups
        return [replace(sample, groups=count, inputs=widths[0] * count, outputs=widths[1] * count) for count in counts]
    step = sample.groups if sample.groups > 1 else 1
    alike = sample.groups != 1
    part = min(1.0, (MOST_WEIGHTS / max(prod(sample.kernel) * sample.inputs * sample.outputs, 1)) ** 0.5)
    shares = [(share, share) for share in _ALONE] if alike else _SHARES
    found = []
    for first, second in shares:
        inputs = sample.inputs if sample.inputs <= 4 else _multiple(sample.inputs * first * part, step)
        found.append(replace(sample, inputs=inputs, outputs=_multiple(sample.outputs * second * part, step)))
    return list(dict.fromkeys(found))


def _multiple(width: float, step: int) -> int:
    """The nearest width that engines like, and that the groups can share."""
    nice = next((number for least, number in ((64, 16), (32, 8), (8, 4)) if width >= least), 1)
    return max(round(width / step / nice) * nice, round(width / step), 1) * step if step > 1 else max(round(width / nice) * nice, 1)


def _fitted(node: Node, times: dict[Sample, float], whole: bool) -> Iterator[Term]:
    if not times:
        return
    samples = list(times)
    inputs, outputs = ([float(getattr(sample, name)) for sample in samples] for name in ("inputs", "outputs"))
    values = (node.operands["input"] if node.op == "Gemm" else node.input), node.output
    axis = -1 if node.op == "Gemm" else 1
    ends: list[Product] = [[(value, axis % len(value.sizes))] for value in values]
    products: list[tuple[Product, list[float]]] = [([], [1.0] * len(samples)), (ends[1], outputs)]
    if samples[0].groups and samples[0].inputs > 4 and not whole:
        products += [(ends[0], inputs)] if samples[0].groups == 1 else []
        products.append(([*ends[0], *ends[1]], [a * b for a, b in zip(inputs, outputs, strict=True)]))
    for coefficient, (product, _) in zip(_least_squares([column for _, column in products], list(times.values())), products, strict=True):
        if coefficient > 0:
            yield coefficient, product


def _least_squares(columns: Sequence[Sequence[float]], times: Sequence[float]) -> list[float]:
    """Coefficients from zero up that leave the least squared relative error."""
    weight = 1 / np.maximum(np.array(times), 1e-6)
    matrix: NDArray[np.float64] = np.array(columns).T * weight[:, None]
    scale = matrix.max(0)
    found, _ = nnls(matrix / scale, np.ones(len(times)))
    return [float(one) for one in found / scale]


def _by_elements(node: Node, rates: dict[tuple[str, tuple[int, ...]], float]) -> Iterator[Term]:
    if node.op in _FREE or not node.outputs or node.output.shape is None or _is_fused(node):
        return
    value = _largest(node)
    op = node.op if node.op in ELEMENTWISE else "Mul"
    rate = rates.get((op, _LARGE if prod(value.sizes[1:]) > 2 * prod(_SMALL) else _SMALL))
    if rate is not None and len(value.sizes) > 1:
        yield rate / max(value.sizes[0], 1), [(value, number) for number in range(len(value.sizes))]


def _largest(node: Node) -> Value:
    """Return the largest value that an operator reads or writes, parameters aside."""
    found = [value for value in (*node.inputs, *node.outputs) if value.shape is not None and not value.is_param]
    return max(found, key=lambda value: prod(value.sizes))


def _is_fused(node: Node) -> bool:
    """Whether engines compute an operator with the layer that it follows."""
    before = node.input.producer if node.inputs and not node.inputs[0].is_param else None
    if before is None or len(node.input.uses) > 1:
        return False
    if node.op == "BatchNormalization":
        return before.op in LAYERS
    return node.op in ("Relu", "Clip") and (before.op in (*LAYERS, "Add") or (before.op == "BatchNormalization" and _is_fused(before)))
