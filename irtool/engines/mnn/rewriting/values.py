"""Rules for operators between layers: padding, splitting, choosing, and sums of several values."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto, helper

from irtool.engines.mnn.rewriting.work import Work, attributes, like, real_numbers
from irtool.engines.onnxruntime.prepare import full_pad


def pad(work: Work, node: NodeProto) -> list[NodeProto] | None:
    """Write Pad with axes as one of all axes, most of them by nothing."""
    held, pads = ("".join(node.input[index : index + 1]) for index in (3, 1))
    rank = len(work.sizes.get(node.input[0], ()))
    axes, amounts = work.constants.get(held), work.constants.get(pads)
    if not rank or axes is None:
        return None
    if amounts is None:
        work.changed += 1
        return full_pad(node, axes, rank)
    full = [0] * (2 * rank)
    for place, axis in enumerate(axes):
        full[axis % rank], full[rank + axis % rank] = amounts[place], amounts[place + len(axes)]
    return [like(node, [node.input[0], work.constant(node, "pads", full), *(name for name in node.input[2:3] if name)])]


def split(work: Work, node: NodeProto) -> list[NodeProto] | None:
    """State the sizes of the parts of Split in a number of pieces, where they differ."""
    values = attributes(node)
    sizes = work.sizes.get(node.input[0], ())
    count, axis = values.get("num_outputs"), values.get("axis", 0)
    length = sizes[axis] if -len(sizes) <= axis < len(sizes) else None
    if not count or length is None or not length % count:
        return None
    each = -(-length // count)
    pieces = [min(each, max(length - each * place, 0)) for place in range(count)]
    return [like(node, [node.input[0], work.constant(node, "sizes", pieces)], without=["num_outputs"])]


def chained(work: Work, node: NodeProto) -> list[NodeProto] | None:
    """Write an operator of three values or more as several of two."""
    if len(node.input) < 3:
        return None
    first, *others = node.input
    made: list[NodeProto] = []
    for place, other in enumerate(others):
        last = place == len(others) - 1
        name = node.output[0] if last else work.inner(node, "part")
        made.append(helper.make_node(node.op_type if node.op_type != "Mean" else "Sum", [first, other], [name], name))
        first = name
    return made


def mean(work: Work, node: NodeProto) -> list[NodeProto] | None:
    """Write the mean of some values as their sum times a number."""
    if len(node.input) < 2:
        return None
    total = work.inner(node, "sum")
    share = work.held(node, "share", np.array(1 / len(node.input), np.float32))
    summed = helper.make_node("Sum", list(node.input), [total], total)
    return [*(chained(work, summed) or [summed]), helper.make_node("Mul", [total, share], list(node.output), node.name)]


def constant_first(work: Work, node: NodeProto) -> list[NodeProto] | None:
    """Write an operator whose first value is a constant of several numbers with the constant last: MNN mistakes it in front of some layers."""
    constant = real_numbers(work.model, node.input[0])
    if constant is None or constant.size < 2 or constant.dtype.kind != "f":
        return None
    turned, result = work.inner(node, "turned"), list(node.output)
    if node.op_type == "Pow":  # c^x = exp(x log c)
        if not (constant > 0).all():
            return None
        logarithms = work.held(node, "logarithms", np.log(constant.astype(np.float64)).astype(constant.dtype))
        product = helper.make_node("Mul", [node.input[1], logarithms], [turned], turned)
        return [product, helper.make_node("Exp", [turned], result, node.name)]
    inverse, join = _INVERSES[node.op_type]
    first = helper.make_node(inverse, [node.input[1]], [turned], turned)
    return [first, helper.make_node(join, [turned, node.input[0]], result, node.name)]


_INVERSES = {"Sub": ("Neg", "Add"), "Div": ("Reciprocal", "Mul")}
"""By operator: the one that inverts its second value, and the one that then joins the two in any order."""


def not_a_number(work: Work, node: NodeProto) -> list[NodeProto]:
    """Write IsNaN by what is told of it: it does not equal itself."""
    equal = work.inner(node, "equal")
    return [
        helper.make_node("Equal", [node.input[0], node.input[0]], [equal], equal),
        helper.make_node("Not", [equal], list(node.output), node.name),
    ]


def one_hot(work: Work, node: NodeProto) -> list[NodeProto] | None:
    """Compare indices with all places, where their number and the two values are constants and the new axis is the last one."""
    depth, values = (real_numbers(work.model, name) for name in node.input[1:3])
    rank = len(work.sizes.get(node.input[0], ()))
    if depth is None or values is None or not rank or attributes(node).get("axis", -1) not in (-1, rank) or values.dtype.kind != "f":
        return None
    count = int(depth.reshape(-1)[0])
    off, on = (float(value) for value in values)
    column, wrapped, found, scaled = (work.inner(node, what) for what in ("column", "wrapped", "found", "scaled"))
    axes = work.constant(node, "axes", [rank])
    inside = work.inner(node, "inside")
    numbers = work.inner(node, "numbers")
    unsqueeze = (
        helper.make_node("Unsqueeze", [node.input[0], axes], [column], column)
        if work.opset >= 13
        else helper.make_node("Unsqueeze", [node.input[0]], [column], column, axes=[rank])
    )
    places = work.held(node, "places", np.arange(count, dtype=np.int32))
    return [
        unsqueeze,
        helper.make_node("Cast", [column], [wrapped], wrapped, to=TensorProto.INT32),
        helper.make_node("Add", [wrapped, work.held(node, "depth", np.array(count, np.int32))], [inside], inside),
        helper.make_node("Mod", [inside, work.held(node, "depth", np.array(count, np.int32))], [f"{inside}.mod"], f"{inside}.mod"),
        helper.make_node("Equal", [f"{inside}.mod", places], [found], found),
        helper.make_node("Cast", [found], [numbers], numbers, to=TensorProto.FLOAT),
        helper.make_node("Mul", [numbers, work.held(node, "on", np.array(on - off, values.dtype))], [scaled], scaled),
        helper.make_node("Add", [scaled, work.held(node, "off", np.array(off, values.dtype))], list(node.output), node.name),
    ]
