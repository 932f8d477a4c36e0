"""Means and variances through operators, one rule each.

A batch norm says that its output has mean beta and variance gamma^2 over the data it was trained on; taken as normal,
that gives the mean after any activation (in closed form for ReLU). What moves or averages entries is run on the means
themselves, so that all of its options count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from irtool.ir.graph import Graph, Node, Value
from irtool.ops.batch_norm import computed_values
from irtool.ops.properties import ADDITIVE
from irtool.ops.rules.context import on_axis
from irtool.ops.rules.contraction import channel_axis, inputs_first
from irtool.ops.rules.movement import LARGEST, matching_axes
from irtool.ops.rules.opaque import short_name

Moments = tuple[Tensor, Tensor]
"""Mean and variance, float64, of the value's rank. An axis along which nothing changes has size 1, others their real size; NaN where unknown."""

Found = Mapping[Value, Moments]
Rule = Callable[[Graph, Node, Found], Sequence[Moments] | None]
"""The moments of a node's first outputs; None where the operator's form is not understood."""

_POINTS, _WEIGHTS = np.polynomial.hermite_e.hermegauss(33)


def unknown(value: Value) -> Moments:
    """Moments of which nothing is known."""
    nan = torch.full((1,) * len(value.sizes), math.nan, dtype=torch.float64)
    return nan, nan


def _of(value: Value, found: Found) -> Moments:
    """The moments of a node's input; a parameter is what it is."""
    if value.data is not None and value.data.is_floating_point():
        data = value.data.double().cpu()
        return data, torch.zeros_like(data)
    return found[value] if value in found else unknown(value)


def shrunk(tensor: Tensor) -> Tensor:
    """Size 1 along every axis along which nothing changes but by rounding."""
    for axis, size in enumerate(tensor.shape):
        if size > 1:
            head = tensor.narrow(axis, 0, 1)
            if tensor.stride(axis) == 0 or torch.allclose(tensor, head.expand_as(tensor), rtol=1e-12, atol=0.0, equal_nan=True):
                tensor = head
    return tensor


def _evaluate(graph: Graph, node: Node, values: Mapping[Value, Tensor]) -> list[Tensor] | None:
    """The node's own operator on other tensors, float64, which it may write into; None if it does not take them."""
    try:
        results = graph.evaluate(node, values)
    except Exception:  # an operator of the host raises types of its own; a mean that it cannot tell is unknown
        return None
    return [result.double() for result in results if result.is_floating_point()]


def batchnorm(graph: Graph, node: Node, found: Found) -> Sequence[Moments] | None:
    """Moments of a batch norm's outputs: beta and gamma squared; where it reads constants, what it makes of them."""
    rank, size = len(node.output.sizes), node.input.sizes[1] if len(node.input.sizes) > 1 else 0
    if not size or computed_values(node) is not None:
        return None
    gamma, beta = (
        node.operands[role].data.double().cpu() if role in node.operands else torch.full((size,), default, dtype=torch.float64)  # type: ignore[union-attr]
        for role, default in (("weight", 1.0), ("bias", 0.0))
    )
    mean, var = on_axis(beta, 1, rank), on_axis(gamma.square(), 1, rank)
    given, spread = _of(node.input, found)
    fixed = (spread == 0) & ~given.isnan()
    if not bool(fixed.any()):
        return [(mean, var)]
    like = next(value.data for value in node.inputs if value.is_param and value.data is not None)
    exact = _evaluate(graph, node, {node.input: given.nan_to_num().expand(_one(given, node.input, 1)).to(like)})
    if exact is None:
        return [(mean, var)]
    return [(torch.where(fixed, exact[0].cpu(), mean), torch.where(fixed, 0.0, var))]


def _one(moments: Tensor, value: Value, *axes: int) -> list[int]:
    """The sizes of a mean, the full ones along some axes."""
    return [value.sizes[axis] if axis in axes else size for axis, size in enumerate(moments.shape)]


def layer(graph: Graph, node: Node, found: Found) -> Sequence[Moments] | None:
    """The outputs of a convolution or linear layer whose weights are zero, but for those that read constants: a constant image each."""
    weight = node.get("weight")
    if weight is None or weight.data is None or not weight.data.is_floating_point() or node.input.is_param:
        return None
    mean, var = _of(node.input, found)
    axis = channel_axis(node, weight) if node.op != "Gemm" else len(node.input.sizes) - 1
    moving = ((var != 0) | mean.isnan()).movedim(axis, 0).flatten(1).any(1).expand(node.input.sizes[axis])
    constant = _reads(node, weight.data, moving) == 0
    sizes = [1 if place == 0 != axis and mean.shape[0] == 1 else size for place, size in enumerate(node.input.sizes)]
    if not bool(constant.any()) or math.prod(sizes) > LARGEST:
        return None
    image = torch.where(on_axis(moving, axis, len(sizes)), 0.0, mean.nan_to_num()).expand(sizes).to(weight.data)
    made = _evaluate(graph, node, {node.input: image})
    if not made:
        return None
    rank = len(node.output.sizes)
    known = on_axis(constant, rank - 1 if node.op == "Gemm" else axis, rank)
    result = torch.where(known, made[0].cpu(), math.nan)
    return [(result, torch.where(known, torch.zeros_like(result), math.nan))]


def _reads(node: Node, weight: Tensor, moving: Tensor) -> Tensor:
    """By how much each output of a layer depends on inputs that are not constant, shape (outputs,)."""
    sums, groups = (
        weight.detach().abs().flatten(2).sum(2) if weight.dim() > 2 else weight.detach().abs(),
        node.attrs.get("group", 1),
    )
    sums = sums.double().cpu()
    if inputs_first(node):
        blocks = sums.reshape(groups, -1, sums.shape[1]).transpose(1, 2)
    else:
        blocks = sums.reshape(groups, -1, sums.shape[1])
    return torch.einsum("goi,gi->go", blocks, moving.double().reshape(groups, -1)).reshape(-1)


def passed(graph: Graph, node: Node, found: Found) -> Sequence[Moments]:
    """Moments that are passed on unchanged."""
    return [_of(node.input, found)]


def select(graph: Graph, node: Node, found: Found) -> Sequence[Moments]:
    """Entries that an index chooses."""
    index = node.operands["index"].data
    assert index is not None
    mean, var = (t.index_select(1, index.cpu()) if t.shape[1] > 1 else t for t in _of(node.input, found))
    return [(mean, var)]


def reshape(graph: Graph, node: Node, found: Found) -> Sequence[Moments]:
    """From the two shapes alone: further operands (`view_as`) give a size."""
    mean, var = (_reshaped(tensor, node.input.sizes, node.output.sizes) for tensor in _of(node.input, found))
    return [(mean, var)]


def _reshaped(tensor: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """Runs of axes of equal products one by one; those along which nothing changes stay short."""
    given, wanted = [], []
    for old, new in matching_axes(before, after):
        varies = any(tensor.shape[axis] > 1 for axis in old)
        given += [before[axis] if varies else 1 for axis in old]
        wanted += [after[axis] if varies else 1 for axis in new]
    return tensor.expand(given).reshape(wanted)


def concat(graph: Graph, node: Node, found: Found) -> Sequence[Moments] | None:
    """Values side by side."""
    rank, axis = len(node.output.sizes), node.attrs["axis"]
    if any(len(value.sizes) != rank for value in node.inputs):
        return None
    joined = []
    for parts in zip(*(_of(value, found) for value in node.inputs), strict=True):
        common = [max(part.shape[d] for part in parts) for d in range(rank)]
        sizes = [[*common[:axis], value.sizes[axis], *common[axis + 1 :]] for value in node.inputs]
        joined.append(torch.cat([part.expand(size) for part, size in zip(parts, sizes, strict=True)], axis))
    return [(joined[0], joined[1])]


_LINED_UP = frozenset({"Stack", "Expand"})
"""Movement that may read several values: others of its inputs say where to, by numbers whose mean tells nothing."""


def moved(graph: Graph, node: Node, found: Found, *, batch: bool = True) -> Sequence[Moments] | None:
    """The node itself, run on the means and on the standard deviations. Without `batch`, on one image where all are alike."""
    read = list(dict.fromkeys(value for value in node.inputs if not value.is_param))
    floating = [value for value in dict.fromkeys(node.inputs) if value.dtype is not None and value.dtype.is_floating_point]
    if (len(read) > 1 and node.op not in _LINED_UP) or any(value not in floating for value in read):
        return None
    results = []
    for place in (0, 1):
        parts = {value: _of(value, found)[place] for value in floating}
        sizes = {v: v.sizes if batch or part.shape[0] > 1 else (1, *v.sizes[1:]) for v, part in parts.items()}
        if sum(map(math.prod, sizes.values())) > LARGEST:
            return None
        given = {value: part.sqrt() if place else part for value, part in parts.items()}
        results.append(_evaluate(graph, node, {value: part.expand(sizes[value]) for value, part in given.items()}))
    if results[0] is None or results[1] is None:
        return None
    return [(mean, deviation.square()) for mean, deviation in zip(*results, strict=True)]


def sampled(graph: Graph, node: Node, found: Found) -> Sequence[Moments] | None:
    """Pooling and resizing. A channel that is the same everywhere scales what one channel of ones becomes: less than 1 where
    an average counts padding, more where a divisor is given."""
    mean, var = _of(node.input, found)
    if len(node.inputs) > 1 or "lp" in node.callee.lower():
        return None
    alike = all(t.shape[0] == 1 and t.numel() == t.shape[1] for t in (mean, var))
    if mean.dim() < 3 or not alike or node.output.sizes[1] != node.input.sizes[1]:
        return moved(graph, node, found, batch=False)
    shape = (1, 1 if max(mean.shape[1], var.shape[1]) > 1 else node.input.sizes[1], *node.input.sizes[2:])
    ones = _evaluate(graph, node, {node.input: torch.ones(shape, dtype=torch.float64)})
    return [(mean * shrunk(one), var * shrunk(one).square()) for one in ones] if ones is not None else None


_KEEPING = frozenset({"mean", "amax", "amin", "max", "min", "sum"})


def reduced(graph: Graph, node: Node, found: Found) -> Sequence[Moments] | None:
    """Reductions that keep a mean a mean."""
    name = short_name(node.callee)
    return moved(graph, node, found, batch=name == "sum") if name in _KEEPING else None


def elementwise(graph: Graph, node: Node, found: Found) -> Sequence[Moments] | None:
    """Any function of the entries at one place."""
    if len(node.inputs) == 1:
        return _activated(graph, node, *_of(node.input, found))
    moments = {value: _of(value, found) for value in node.inputs}
    if node.op not in ADDITIVE:
        return _of_constants(graph, node, moments)
    means = _evaluate(graph, node, {value: mean.clone() for value, (mean, _) in moments.items()})
    if not means:
        return None
    total = torch.zeros_like(means[0])
    for value in moments:  # independent of each other, each with the factor that the node gives it (alpha)
        alone = {other: var.sqrt() if other is value else torch.zeros_like(var) for other, (_, var) in moments.items()}
        for part in _evaluate(graph, node, alone) or ():
            total = total + part.square()
    return [(means[0], total)]


def _of_constants(graph: Graph, node: Node, moments: Mapping[Value, Moments]) -> Sequence[Moments] | None:
    """Compute an elementwise operator's results for entries that are constant in all of its inputs."""
    if any(value.dtype is None or not value.dtype.is_floating_point for value in moments):
        return None
    moving = torch.zeros(())
    for mean, var in moments.values():
        moving = moving + (mean.isnan() | (var != 0))
    made = None if bool(moving.all()) else _evaluate(graph, node, {value: mean.clone() for value, (mean, _) in moments.items()})
    if not made:
        return None
    mean = torch.where(moving > 0, math.nan, made[0])
    return [(mean, mean * 0)]


def _activated(graph: Graph, node: Node, mean: Tensor, var: Tensor) -> Sequence[Moments] | None:
    """E[f(X)] and Var[f(X)] for X ~ N(mean, var): closed form for ReLU, Gauss-Hermite quadrature of the node itself otherwise."""
    mean, var = torch.broadcast_tensors(mean, var)
    std = var.sqrt()
    if node.op == "Relu":
        return [_relu(mean, std)]
    if "axis" in node.attrs:
        return None
    points, weights = torch.from_numpy(_POINTS), torch.from_numpy(_WEIGHTS / math.sqrt(2 * math.pi))
    grid = mean[..., None] + std[..., None] * points
    values = _evaluate(graph, node, {node.input: grid})
    if not values or values[0].shape != grid.shape:
        return None
    first = (values[0] * weights).sum(-1)
    spread = ((values[0] - first[..., None]).square() * weights).sum(-1)
    return [(torch.where(std == 0, values[0][..., 0], first), torch.where(std == 0, 0.0, spread))]


def _relu(mean: Tensor, std: Tensor) -> Moments:
    """E[max(X, 0)] = m Phi(m/s) + s phi(m/s); E[max(X, 0)^2] = (m^2 + s^2) Phi(m/s) + m s phi(m/s)."""
    safe = std.clamp_min(1e-30)
    ratio = mean / safe
    upper = 0.5 * torch.erfc(-ratio / math.sqrt(2))
    density = torch.exp(-0.5 * ratio.square()) / math.sqrt(2 * math.pi)
    first = mean * upper + safe * density
    second = (mean.square() + safe.square()) * upper + mean * safe * density
    return torch.where(std == 0, mean.clamp_min(0), first), (second - first.square()).clamp_min(0)
