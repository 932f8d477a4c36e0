"""Rules for products of matrices."""

from __future__ import annotations

from onnx import NodeProto, helper

from irtool.engines.mnn.rewriting.work import Work, attributes, like


def matmul(work: Work, node: NodeProto) -> list[NodeProto] | None:
    """Write a matrix, or a vector, times a vector as products that are added up."""
    left, right = (work.sizes.get(name) for name in node.input)
    if right is None or len(right) != 1 or not left:
        return None
    products = f"{node.output[0]}.products"
    return [
        helper.make_node("Mul", list(node.input), [products], products),
        work.summed(node, products, len(left) - 1),
    ]


def gemm(work: Work, node: NodeProto) -> list[NodeProto] | None:
    """Transpose the left matrix in a step of its own."""
    if not attributes(node).get("transA"):
        return None
    turned = work.inner(node, "turned")
    first = helper.make_node("Transpose", [node.input[0]], [turned], turned, perm=[1, 0])
    return [first, like(node, [turned, *node.input[1:]], transA=0)]


def einsum(work: Work, node: NodeProto) -> list[NodeProto] | None:
    """Write a product of two tensors that is summed over one index as a product of matrices, where each has at most one index of its own."""
    equation = attributes(node)["equation"].replace(" ", "")
    inputs, arrow, result = equation.partition("->")
    sides = inputs.split(",")
    if not arrow or len(sides) != 2 or len(node.input) != 2 or any(len(set(side)) != len(side) or "." in side for side in (*sides, result)):
        return None
    left, right = sides
    both = [index for index in result if index in left and index in right]
    summed = [index for index in left if index in right and index not in result]
    alone = [[index for index in side if index not in other] for side, other in ((left, right), (right, left))]
    if len(summed) != 1 or any(index not in result for own in alone for index in own) or len(alone[1]) > 1:
        return None
    rows, columns = alone
    if (len(rows) > 1 and both) or not rows or not columns:  # indices of the left alone are rows of rows where the right has no batch
        return None
    orders = [*both, *rows, *summed], [*both, *summed, *columns]
    made, names = list[NodeProto](), list[str]()
    for name, side, order in zip(node.input, sides, orders, strict=True):
        names.append(_turned(work, node, name, side, order, made))
    product, order = work.inner(node, "product"), [*both, *rows, *columns]
    made.append(helper.make_node("MatMul", names, [product], product))
    perm = [order.index(index) for index in result]
    made.append(helper.make_node("Transpose", [product], list(node.output), node.name, perm=perm))
    return made


def _turned(work: Work, node: NodeProto, name: str, side: str, order: list[str], made: list[NodeProto]) -> str:
    perm = [side.index(index) for index in order]
    if perm == sorted(perm):
        return name
    turned = work.inner(node, "turned")
    made.append(helper.make_node("Transpose", [name], [turned], turned, perm=perm))
    return turned
