"""Reads the attributes of an ONNX node in the vocabulary of `irtool.ir.attributes`: defaults filled in, axes counted from 0.

Arguments that older operator sets keep in attributes and later ones in inputs are read from where they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from irtool.ir.attributes import END, Attrs, cuts, pooling, window


class Unreadable(Exception):
    """The node has a form that no rule serves; the text is the reason. It becomes a barrier."""


class Call(Protocol):
    """A host node as the rows below see it."""

    opset: int
    op: str

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute of the host node."""

    def known(self, index: int) -> NDArray[Any] | None:
        """The value of an input that is a constant or computed from shapes; None if the input is absent or flows."""

    def given(self, index: int) -> bool:
        """Whether there is such an input."""

    def shape(self, index: int) -> tuple[int, ...]:
        """The shape of an input."""

    def result(self, index: int = 0) -> tuple[int, ...]:
        """The shape of an output."""

    def results(self) -> int:
        """Count the outputs that the node lists."""

    def is_read(self, index: int) -> bool:
        """Whether a node or the model's caller reads an output."""

    def number(self, index: int) -> float | None:
        """An input that is one number, and so an argument rather than a tensor with channels."""


REDUCTIONS = {
    "ReduceMean": "mean", "ReduceSum": "sum", "ReduceMax": "amax", "ReduceMin": "amin", "ReduceProd": "prod", "ReduceL1": "l1", "ReduceL2": "l2",
    "ReduceLogSum": "logsum", "ReduceLogSumExp": "logsumexp", "ReduceSumSquare": "sumsquare",
}  # fmt: skip
"""Reductions, and what messages call them."""


def nothing(call: Call) -> Attrs:
    """No attribute that matters."""
    return {}


def argument(call: Call, index: int, name: str) -> Any:
    """Read an argument as plain numbers: the input `index`, or in older operator sets the attribute `name`; None if absent.

    Raises:
        Unreadable: it is computed from data.
    """
    if call.given(index):
        value = call.known(index)
        if value is None:
            raise Unreadable(f"{call.op} whose {name} are computed from data")
        return value.tolist()
    return call.attr(name)


def sizes(name: str) -> Callable[[Call], Attrs]:
    """Sizes and axes that the shapes tell already; they must not be computed from data."""

    def read(call: Call) -> Attrs:
        argument(call, 1, name)
        return {}

    return read


def _pads(call: Call, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> tuple[int, ...]:
    """Amounts before each axis, then after; those of `auto_pad` for the example's sizes."""
    axes, same = len(kernel), call.attr("auto_pad", "NOTSET")
    if not same.startswith("SAME") or call.op == "ConvTranspose":
        return tuple(call.attr("pads") or (0,) * (2 * axes))
    sides = zip(call.result()[2:], strides, kernel, dilations, call.shape(0)[2:], strict=True)
    need = [max((out - 1) * s + (k - 1) * d + 1 - size, 0) for out, s, k, d, size in sides]
    less, more = tuple(n // 2 for n in need), tuple(n - n // 2 for n in need)
    return (*more, *less) if same == "SAME_LOWER" else (*less, *more)


def conv(call: Call) -> Attrs:
    """Windows and groups of a convolution or its transpose."""
    axes = len(call.shape(1)) - 2
    kernel = call.attr("kernel_shape") or call.shape(1)[2:]
    strides, dilations = (tuple(call.attr(name) or (1,) * axes) for name in ("strides", "dilations"))
    found: Attrs = {"strides": strides, "pads": _pads(call, kernel, strides, dilations), "dilations": dilations,
                    "group": int(call.attr("group", 1))}  # fmt: skip
    if call.op == "ConvTranspose":
        found["output_padding"] = tuple(call.attr("output_padding") or (0,) * axes)
        if call.attr("auto_pad", "NOTSET") != "NOTSET" or call.attr("output_shape"):
            found["auto_pad"] = True  # pads are computed from sizes
    return found


_POOLS = (("Max", "max"), ("Average", "average"), ("Lp", "lp"))


def pool(call: Call) -> Attrs:
    """Windows of a pool."""
    kind = next(kind for part, kind in _POOLS if part in call.op)
    before, after = call.shape(0)[2:], call.result()[2:]
    if call.op.startswith("Global"):
        return pooling(kind, before, after)
    kernel = call.attr("kernel_shape") or (1,) * len(before)
    strides, dilations = (tuple(call.attr(name) or (1,) * len(kernel)) for name in ("strides", "dilations"))
    pads = _pads(call, kernel, strides, dilations)
    found = window(kind, before, kernel, strides, pads)
    if "strides" in found and call.attr("ceil_mode", 0):
        found["ceil_mode"] = True
    if kind == "average" and any(pads):
        found["count_include_pad"] = bool(call.attr("count_include_pad", 0))
    return found


def gemm(call: Call) -> Attrs:
    """A product with a weight, and a bias a channel."""
    if call.attr("transA", 0) or call.attr("alpha", 1.0) != 1.0 or (call.given(2) and call.attr("beta", 1.0) != 1.0):
        raise Unreadable("Gemm with a transposed first factor or scaled factors")
    if call.given(2) and (len(call.shape(2)) != 1 or call.shape(2) != call.result()[1:]):
        raise Unreadable("Gemm whose third factor is no bias a channel")
    return {"transB": int(call.attr("transB", 0))}


def norm(call: Call) -> Attrs:
    """Read the number that keeps a norm from dividing by 0."""
    return {"epsilon": float(call.attr("epsilon", 1e-5))}


def batch_norm(call: Call) -> Attrs:
    """Before opset 14 a batch norm that lists its statistics among its outputs is in training mode: no attribute says so."""
    if call.attr("training_mode", 0) or (call.opset < 14 and call.results() > 1):
        raise Unreadable("batch norm in training mode")
    if not call.attr("spatial", 1):
        raise Unreadable("batch norm with statistics for each position")
    return norm(call)


def last_axes_norm(call: Call) -> Attrs:
    """Layer norm and RMS norm: the first of the axes, counted from the end."""
    if any(call.is_read(index) for index in range(1, call.results())):
        raise Unreadable(f"{call.op} that gives its statistics, too")
    rank = len(call.shape(0))
    return {**norm(call), "axis": call.attr("axis", -1) % rank - rank}


def group_norm(call: Call) -> Attrs:
    """Groups, where there is a scale a channel."""
    if call.opset < 21:
        raise Unreadable("group norm with a scale a group")
    return {**norm(call), "num_groups": int(call.attr("num_groups"))}


def lp_norm(call: Call) -> Attrs:
    """The axis whose length becomes 1."""
    return {"p": float(call.attr("p", 2)), **along(-1)(call)}


def local_norm(call: Call) -> Attrs:
    """Local response norm."""
    named = ("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)
    return {"size": call.attr("size"), **{name: float(call.attr(name, default)) for name, default in named}}


_SOFTMAXES = {"LogSoftmax": {"kind": "log"}, "Hardmax": {"kind": "hard"}}


def softmax(call: Call) -> Attrs:
    """Before opset 13 the axes from `axis` on count as one, which is softmax over one axis if the rest have one entry."""
    shape, kind = call.shape(0), _SOFTMAXES.get(call.op, {})
    if call.opset >= 13:
        return {"axis": call.attr("axis", -1) % max(len(shape), 1), **kind}
    axis = call.attr("axis", 1) % len(shape)
    long = [d for d in range(axis, len(shape)) if shape[d] > 1]
    if len(long) > 1:
        raise Unreadable(f"{call.op} over several axes")
    return {"axis": long[0] if long else axis, **kind}


def along(default: int) -> Callable[[Call], Attrs]:
    """The axis that an operator works along."""
    return lambda call: {"axis": int(call.attr("axis", default)) % max(len(call.shape(0)), 1)}


def cumulated(call: Call) -> Attrs:
    """The axis of a cumulative sum, and its variants."""
    found = argument(call, 1, "axis")
    axis = int(found if isinstance(found, int) else found[0]) % max(len(call.shape(0)), 1)
    return {"axis": axis, **{name: True for name in ("exclusive", "reverse") if call.attr(name, 0)}}


def reduce(call: Call) -> Attrs:
    """Read the kind and the axes of a reduction."""
    axes, rank = argument(call, 1, "axes"), len(call.shape(0))
    if not axes and call.attr("noop_with_empty_axes", 0):
        raise Unreadable(f"{call.op} over no axes")
    over = tuple(sorted(axis % rank for axis in axes)) if axes else tuple(range(rank))
    kind = {"amax": "max", "amin": "min"}.get(REDUCTIONS[call.op], REDUCTIONS[call.op])
    return {"kind": kind, "axes": over, "keepdims": bool(call.attr("keepdims", 1))}


def arg_reduce(call: Call) -> Attrs:
    """Read the axis along which the largest or smallest entry is looked for."""
    return {"kind": call.op.lower(), "axes": (call.attr("axis", 0) % len(call.shape(0)),), "keepdims": bool(call.attr("keepdims", 1))}


def resize(call: Call) -> Attrs:
    """Read how values between places are found. Where scales and sizes are computed from data, the sizes are those of the example."""
    for index in (1, 2, 3):
        if call.given(index) and call.known(index) is None:
            raise Unreadable(f"{call.op} to a size computed from data")
    aligned = call.attr("coordinate_transformation_mode") == "align_corners"
    return {"mode": call.attr("mode", "nearest"), **({"coordinate_transformation_mode": "align_corners"} if aligned else {})}


def split(call: Call) -> Attrs:
    """The axis that is divided."""
    argument(call, 1, "split")
    return {**along(0)(call), "parts": call.results()}


def transpose(call: Call) -> Attrs:
    """The order of the axes."""
    return {"perm": tuple(call.attr("perm") or reversed(range(len(call.shape(0)))))}


def slices(call: Call) -> Attrs:
    """The cuts along each axis."""
    starts, ends, axes, steps = (argument(call, index, name) for index, name in enumerate(("starts", "ends", "axes", "steps"), 1))
    shape = call.shape(0)
    listed = zip(axes or range(len(starts)), starts, ends, steps or [1] * len(starts), strict=True)
    return cuts([(axis, start, _end(end, step, shape[axis]), step) for axis, start, end, step in listed], len(shape))


def _end(end: int, step: int, size: int) -> int | None:
    """None for all that there is in the direction of the step."""
    return None if (end >= END if step > 0 else end < -size) else end


def gather(call: Call) -> Attrs:
    """The axis along which entries are taken."""
    if call.known(1) is None:
        raise Unreadable("Gather at indices computed from data")
    return along(0)(call)


def pad(call: Call) -> Attrs:
    """Amounts before and after every axis, and what is put there."""
    pads, rank = argument(call, 1, "pads"), len(call.shape(0))
    axes = argument(call, 3, "axes") if call.given(3) else range(rank)
    amounts = [0] * (2 * rank)
    for place, axis in enumerate(axes):
        amounts[axis % rank], amounts[rank + axis % rank] = pads[place], pads[place + len(axes)]
    found: Attrs = {"pads": tuple(amounts), "mode": call.attr("mode", "constant")}
    value = call.number(2) if call.given(2) else call.attr("value")
    return {**found, "value": float(value)} if value and found["mode"] == "constant" else found


def depth(call: Call) -> Attrs:
    """The side of a block of pixels, and how channels are dealt out to it."""
    return {"blocksize": call.attr("blocksize"), "mode": call.attr("mode", "DCR")}


def clip(call: Call) -> Attrs:
    """Bounds that are given."""
    for index in (1, 2):
        if call.given(index) and call.known(index) is None:
            raise Unreadable("Clip between computed bounds")
    bounds = [call.known(index) for index in (1, 2)]
    low, high = (call.attr(name) if bound is None else float(bound) for name, bound in zip(("min", "max"), bounds, strict=True))
    return {name: float(bound) for name, bound in (("min", low), ("max", high)) if bound is not None}


def dropout(call: Call) -> Attrs:
    """Random only where the file asks for training mode, or computes whether to."""
    training = call.known(2)
    return {"training_mode": True} if call.given(2) and (training is None or bool(training)) else {}


def einsum(call: Call) -> Attrs:
    """The equation, without spaces."""
    return {"equation": str(call.attr("equation", "")).replace(" ", "")}


def quantise(call: Call) -> Attrs:
    """One scale for all; scales for each channel that are stored have an operator of their own."""
    if len(call.shape(1)) == 1 and math.prod(call.shape(1)) > 1:
        raise Unreadable("computed scales for each channel")
    if math.prod(call.shape(1)) > 1:
        raise Unreadable("a scale a block")
    return {}


_ROLES = ("input", "other", "third")


def numbers(call: Call) -> Attrs:
    """The numbers that a sum, product or power is taken with, by their place."""
    found: Attrs = {}
    for index, role in enumerate(_ROLES):
        value = call.number(index)
        if value is not None:
            found["other" if call.op in ("Add", "Mul") else role] = value
    return found


def _parameters(**defaults: float) -> Callable[[Call], Attrs]:
    """Numbers that shape an activation."""
    return lambda call: {name: float(call.attr(name, default)) for name, default in defaults.items()}


ACTIVATIONS: Mapping[str, Callable[[Call], Attrs]] = {
    "LeakyRelu": _parameters(alpha=0.01),
    "Elu": _parameters(alpha=1.0),
    "Celu": _parameters(alpha=1.0),
    "HardSigmoid": _parameters(alpha=0.2, beta=0.5),
    "ThresholdedRelu": _parameters(alpha=1.0),
    "Shrink": _parameters(lambd=0.5, bias=0.0),
    "Gelu": lambda call: {"approximate": call.attr("approximate", "none")},
}
"""Activations that numbers shape."""
