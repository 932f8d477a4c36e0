"""Multiply-accumulates of operators for the whole example batch, as sums of products of sizes."""

from __future__ import annotations

from irtool.ir.graph import Node, Value

Product = list[tuple[Value, int]]
"""Axes of values, by (value, axis): their sizes are multiplied."""


def none(node: Node) -> list[Product]:
    """An operator that multiplies and accumulates nothing."""
    return []


def axes(value: Value, start: int = 0, stop: int | None = None) -> Product:
    """Axes of a value, from `start` to `stop`."""
    return [(value, axis) for axis in range(len(value.sizes))[start:stop]]


def conv(node: Node) -> list[Product]:
    """Each output is a sum over its group's input channels and the kernel; a transposed one spreads each input likewise."""
    weight = node.get("weight")
    if weight is None:
        return []
    return [axes(node.input if node.op == "ConvTranspose" else node.output) + axes(weight, 1)]


def gemm(node: Node) -> list[Product]:
    """Each output is a sum over the last axis of what is multiplied."""
    factor = node.operands["input"]  # addmm's first operand is the bias
    return [axes(node.output) + axes(factor, -1)]


def matmul(node: Node) -> list[Product]:
    """Each output is a sum over the last axis of the first factor."""
    return [axes(node.output) + axes(node.input, -1)]


def attention(node: Node) -> list[Product]:
    """q k^T and its product with v, in full: a causal mask saves nothing here, as in torch's counter."""
    query, value = node.input, node.operands["value"]
    scores = axes(query, 0, -1) + axes(value, -2, -1)
    return [scores + axes(query, -1), scores + axes(value, -1)]


def einsum(node: Node) -> list[Product]:
    """Operands are multiplied from left to right; a letter that only one of them has is summed away before."""
    equation = str(node.attrs["equation"])
    terms, arrow, result = equation.partition("->")
    letters = terms.split(",")
    if "." in equation or len(letters) != len(node.inputs):
        return []
    places = {c: (value, axis) for term, value in zip(letters, node.inputs, strict=True) for axis, c in enumerate(term)}
    kept = set(result) if arrow else {c for c in places if terms.count(c) == 1}
    products, left = [], set(letters[0])
    for index, term in enumerate(letters[1:], 1):
        later = kept.union(*letters[index + 1 :])
        products.append([places[c] for c in sorted((left & set(term)) | ((left | set(term)) & later))])
        left = (left | set(term)) & later
    return products
