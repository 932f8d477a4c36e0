"""Reads the attributes of a torch call in the vocabulary of `irtool.ir.attributes`.

One row an operator. torch writes `stride=2` or `stride=(2, 2)`, leaves defaults out, and keeps some arguments in modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from irtool.hosts.torch.call import Call, others
from irtool.ir.attributes import END, Attrs, cuts, each, pooling, window
from irtool.ir.graph import Node
from irtool.ops.windows import implied_axis

Rule = Callable[[Call], Attrs]


def attributes(node: Node, given: Mapping[str, Any], module: nn.Module | None) -> Attrs:
    """Read a node's attributes; its operands and outputs are known."""
    return _RULES.get(node.op, others)(Call(node, given, module))


def _nothing(call: Call) -> Attrs:
    return {}


def _conv(call: Call) -> Attrs:
    node, weight = call.node, call.node.get("weight")
    kernel = weight.sizes[2:] if weight is not None else (1,) * (len(node.output.sizes) - 2)
    axes = len(kernel)
    dilations = each(call.get("dilation", default=1), axes)
    found: Attrs = {
        "strides": each(call.get("stride", default=1), axes),
        "pads": _pads(call.get("padding", default=0), kernel, dilations),
        "dilations": dilations,
        "group": int(call.get("groups", default=1)),
    }
    if node.op == "ConvTranspose":
        found["output_padding"] = each(call.get("output_padding", default=0), axes)
    mode = call.get("padding_mode", default="zeros")
    return found if mode == "zeros" else {**found, "pad_mode": mode}


def _pads(padding: Any, kernel: Sequence[int], dilations: Sequence[int]) -> tuple[int, ...]:
    """Amounts before each axis, then after. torch's `same` puts what is odd at the end."""
    if not isinstance(padding, str):
        return each(padding, len(kernel)) * 2
    whole = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilations, kernel, strict=True)]
    return (*(amount // 2 for amount in whole), *(amount - amount // 2 for amount in whole))


def _deform_conv(call: Call) -> Attrs:
    named = ("strides", ("stride_h", "stride_w")), ("dilations", ("dil_h", "dil_w"))
    found: Attrs = {name: tuple(call.get(part, default=1) for part in parts) for name, parts in named}
    found["pads"] = tuple(call.get(part, default=0) for part in ("pad_h", "pad_w")) * 2
    return {**found, "group": call.get("groups", default=1), "offset_group": call.get("offset_groups", default=1)}


_POOLS = (("max", "max"), ("av", "average"), ("lp", "lp"))


def _pool(call: Call) -> Attrs:
    node, callee = call.node, call.node.callee.lower()
    kind = next((kind for part, kind in _POOLS if part in callee), callee)
    axes = len(node.output.sizes) - 1 if callee.endswith("1d") and len(node.output.sizes) == 2 else max(len(node.output.sizes) - 2, 1)
    before, after = node.input.sizes[-axes:], node.output.sizes[-axes:]
    if "adaptive" in callee:
        return pooling(kind, before, after)
    kernel = each(call.get("kernel_size", default=1), axes)
    pads = each(call.get("padding", default=0), axes) * 2
    found = window(kind, before, kernel, each(call.get("stride") or kernel, axes), pads)
    if "strides" in found and call.get("ceil_mode", default=False):
        found["ceil_mode"] = True
    if kind == "average" and any(pads):
        found["count_include_pad"] = bool(call.get("count_include_pad", default=True))
    return found


def _norm(call: Call) -> Attrs:
    return {"epsilon": float(call.get("eps", default=1e-5))}


def _batch_norm(call: Call) -> Attrs:
    return {**_norm(call), "training_mode": True} if call.given.get("training") else _norm(call)


def _instance_norm(call: Call) -> Attrs:
    """Instance norm measures its input: the function unless it is told not to, the module unless it stores statistics."""
    stated = call.given.get("use_input_stats", call.module is None)
    return _norm(call) if stated or call.node.get("running_mean") is None else {**_norm(call), "use_input_stats": False}


def _last_axes_norm(call: Call) -> Attrs:
    shape, eps = call.get("normalized_shape", default=1), call.get("eps", default=1e-5 if call.node.op == "LayerNormalization" else None)
    found: Attrs = {} if eps is None else {"epsilon": float(eps)}
    return {**found, "axis": -1 if isinstance(shape, int) else -len(shape)}


def _group_norm(call: Call) -> Attrs:
    return {**_norm(call), "num_groups": int(call.get("num_groups"))}


def _lp_norm(call: Call) -> Attrs:
    return {"p": float(call.get("p", default=2)), "axis": _axis(call, 1), "epsilon": float(call.get("eps", default=1e-12))}


def _local_norm(call: Call) -> Attrs:
    return {"size": call.get("size"), "alpha": call.get("alpha", default=1e-4), "beta": call.get("beta", default=0.75),
            "bias": float(call.get("k", default=1.0))}  # fmt: skip


def _axis(call: Call, default: int, *, made: int = 0) -> int:
    """The axis that a call names, counted from 0.

    Args:
        call: the call.
        default: where it names none.
        made: how many axes more its result has.
    """
    dim = call.get("dim", "axis", default=default)
    rank = len(call.node.input.sizes) + made
    return int(dim if isinstance(dim, int) else default) % max(rank, 1)


def _along(default: int) -> Rule:
    return lambda call: {"axis": _axis(call, default)}


def _gather(call: Call) -> Attrs:
    """`aten.index` names its axis by its place in the list of indices."""
    listed = call.node.host.args[1:2] if "dim" not in call.given and call.name == "index" else ()
    place = next((place for one in listed if isinstance(one, tuple | list) for place, index in enumerate(one) if index is not None), 0)
    return {"axis": _axis(call, place)}


def _stack(call: Call) -> Attrs:
    """`hstack` and `vstack` make no axis of their own, and name none."""
    return {"axis": _axis(call, 0, made=len(call.node.output.sizes) - len(call.node.input.sizes))}


def _softmax(call: Call) -> Attrs:
    found: Attrs = {"axis": _axis(call, implied_axis(len(call.node.input.sizes)))}
    kind = next((word for word in ("log", "min") if word in call.name), None)
    return found if kind is None else {**found, "kind": kind}


def _cumulated(call: Call) -> Attrs:
    found: Attrs = {"axis": _axis(call, 0)}
    return {**found, "kind": "prod"} if "prod" in call.name else found


def _split(call: Call) -> Attrs:
    rank = len(call.node.input.sizes)
    axis = call.get("dim", "axis", *(("split_size_or_sections",) if call.name == "unbind" else ()), default=0)
    return {"axis": int(axis) % rank, "parts": len(call.node.outputs)}


_AXES = ("dim0", "dim1", "axis0", "axis1", "source", "destination")
_LAST_TWO = frozenset({"mt", "mh", "adjoint"})


def _transpose(call: Call) -> Attrs:
    rank, name, listed = len(call.node.input.sizes), call.name, call.listed(*_AXES)
    if "move" in name:
        return {"perm": _moved(rank, listed)} if len(listed) == 2 else others(call)
    if len(listed) == 1 and isinstance(listed[0], tuple | list):
        listed = list(listed[0])
    if name == "permute":
        return {"perm": tuple(int(axis) % rank for axis in listed)}
    if name in _LAST_TWO and rank > 1:
        listed = [-2, -1]
    if not listed:
        return {"perm": tuple(range(rank))[::-1]}
    if len(listed) != 2:
        return others(call)
    order = list(range(rank))
    one, other = (int(axis) % rank for axis in listed)
    order[one], order[other] = order[other], order[one]
    return {"perm": tuple(order)}


def _moved(rank: int, listed: Sequence[Any]) -> tuple[int, ...]:
    """The order of axes of which some are moved to other places."""
    sources, places = ([int(axis) % rank for axis in (one if isinstance(one, tuple | list) else (one,))] for one in listed)
    order = [axis for axis in range(rank) if axis not in sources]
    for place, axis in sorted(zip(places, sources, strict=True)):
        order.insert(place, axis)
    return tuple(order)


_KINDS = {"amax": "max", "amin": "min", "linalg_vector_norm": "norm"}


def _reduce(call: Call) -> Attrs:
    rank, dims = len(call.node.input.sizes), call.given.get("dim")
    correction = call.get("correction", default=0 if dims is False or call.get("unbiased", default=True) is False else 1)
    listed = () if dims is None or isinstance(dims, bool) else (dims,) if isinstance(dims, int) else tuple(dims)
    axes = tuple(sorted(int(axis) % max(rank, 1) for axis in listed)) or tuple(range(rank))
    found: Attrs = {"kind": _KINDS.get(call.name, call.name), "axes": axes, "keepdims": bool(call.given.get("keepdim", False))}
    order = call.given.get("ord", call.given.get("p"))
    if order not in (None, 2, "fro"):
        found["p"] = order
    return found if correction == 1 or call.name.split("_")[0] not in ("var", "std") else {**found, "correction": correction}


def _clip(call: Call) -> Attrs:
    if call.name.rstrip("_") == "relu6":
        return {"min": 0.0, "max": 6.0}
    defaults = (-1.0, 1.0) if "hardtanh" in call.name else (None, None)
    bounds = call.get("min", "min_val", "arg1", default=defaults[0]), call.get("max", "max_val", "arg2", default=defaults[1])
    return {name: _number(bound) for name, bound in zip(("min", "max"), bounds, strict=True) if bound is not None}


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, int | float) else value


def _parameter(name: str, *names: str, default: float) -> Rule:
    """One number that shapes an activation."""
    return lambda call: {name: _number(call.get(name, *names, default=default))}


def _numbers(call: Call) -> Attrs:
    """The numbers that a sum, product or power is taken with, by their place."""
    found: Attrs = {}
    for role in ("input", "other", "third"):
        value = call.given.get(role)
        if isinstance(value, bool | int | float) and role not in call.node.operands:
            found["other" if call.node.op in ("Add", "Mul") else role] = float(value)
    if call.given.get("alpha") not in (None, 1):
        found["alpha"] = call.given["alpha"]
    return found


def _dropout(call: Call) -> Attrs:
    """A function does what its flag says, and drops if it has none; a module follows the mode."""
    flag = next((call.given[name] for name in ("training", "train", "arg2") if name in call.given), "." in call.node.callee)
    return {"training_mode": True} if flag else {}


def _resize(call: Call) -> Attrs:
    found: Attrs = {"mode": str(call.get("mode", default="nearest")).removeprefix("bi").removeprefix("tri")}
    return {**found, "coordinate_transformation_mode": "align_corners"} if call.get("align_corners", default=False) else found


_COPYING = (("reflect", "reflect"), ("replicat", "edge"), ("circular", "wrap"))


def _pad(call: Call) -> Attrs:
    """torch lists amounts from the last axis backwards, those before and after each axis together."""
    rank, amounts = len(call.node.input.sizes), call.get("pad", "padding", default=())
    flat = (amounts,) * (2 * (rank - 2)) if isinstance(amounts, int) else tuple(amounts)
    pads = [0] * (2 * rank)
    for place in range(0, len(flat), 2):
        axis = rank - 1 - place // 2
        pads[axis], pads[rank + axis] = int(flat[place]), int(flat[place + 1])
    mode, callee = str(call.get("mode", default="constant")), call.node.callee.lower()
    mode = next((ours for word, ours in _COPYING if word in callee or mode.startswith(word)), mode)
    found: Attrs = {"pads": tuple(pads), "mode": mode}
    value = call.get("value", default=0)
    return {**found, "value": _number(value)} if mode == "constant" and value else found


def _depth(call: Call) -> Attrs:
    return {"blocksize": call.get("upscale_factor", "downscale_factor"), "mode": "CRD"}


_WHOLE: list[Any] = [0, 0, None, 1]


def _slice(call: Call) -> Attrs:
    rank, items = len(call.node.input.sizes), call.listed("dim", "start", "end", "length", "step")
    if call.name == "narrow" and len(items) == 3 and all(isinstance(item, int) for item in items):
        return cuts([(items[0], items[1], items[1] + items[2], 1)], rank)
    if call.name == "slice" and all(isinstance(item, int) or item is None for item in items):  # of torch.export: axis, start, end, step
        axis, start, end, step = items + _WHOLE[len(items) :]
        return cuts([(axis, start or 0, _end(end), step)], rank)
    flat: list[Any] = list(items[0]) if len(items) == 1 and isinstance(items[0], tuple) else items
    if call.name == "getitem" and all(isinstance(item, slice) for item in flat):
        return cuts([(axis, cut.start or 0, _end(cut.stop), cut.step or 1) for axis, cut in enumerate(flat)], rank)
    return others(call)


def _end(end: int | None) -> int | None:
    return None if end is None or end >= END else end


def _einsum(call: Call) -> Attrs:
    return {"equation": "i,j->ij" if call.name in ("outer", "ger") else str(call.given.get("equation", "")).replace(" ", "")}


def _fourier(call: Call) -> Attrs:
    """The axes of a Fourier transform: the last one, the last two, or as the names that end in n have it, those of `s`, or all."""
    rank, dim, sizes = len(call.node.input.sizes), call.given.get("dim"), call.given.get("s")
    if dim is None and call.name.endswith("2"):
        dim = (-2, -1)
    elif dim is None and call.name.endswith(("n", "shift")):
        dim = tuple(range(-len(sizes), 0)) if isinstance(sizes, list | tuple) else tuple(range(rank))
    elif dim is None:
        dim = -1
    axes = tuple(int(axis) % rank for axis in (dim if isinstance(dim, list | tuple) else (dim,)))
    rest = {name: value for name, value in others(call).items() if name not in ("axis", "s")}
    return {"kind": call.name, "axes": axes, **rest}


def _named(plain: str) -> Rule:
    """The arguments, and which of the functions that share a rule it is, but for the plain one."""
    return lambda call: {**others(call), **({} if call.name == plain else {"kind": call.name})}


_RULES: Mapping[str, Rule] = {
    "Trilu": _named("tril"), "Roll": _named("roll"),
    "Expand": lambda call: {"kind": "interleave"} if "interleave" in call.name else {},
    "Conv": _conv, "ConvTranspose": _conv, "DeformConv": _deform_conv, "Gemm": lambda call: {"transB": 1}, "Pool": _pool, "Softmax": _softmax, "Split": _split,
    "Transpose": _transpose, "Reduce": _reduce, "Clip": _clip, "HardSigmoid": lambda call: {"alpha": 1 / 6, "beta": 0.5}, "Gelu": lambda call: {"approximate": call.get("approximate", default="none")}, "Resize": _resize, "Pad": _pad,
    "Slice": _slice, "Einsum": _einsum, "DepthToSpace": _depth, "SpaceToDepth": _depth, "Dropout": _dropout, "Fourier": _fourier,
    "Concat": _along(0), "Stack": _stack, "Cumsum": _cumulated, "LogCumsumExp": _along(0), "Glu": _along(-1), "Gather": _gather,
    "LeakyRelu": _parameter("alpha", "negative_slope", "arg1", default=0.01), "Elu": _parameter("alpha", "arg1", default=1.0),
    "Celu": _parameter("alpha", "arg1", default=1.0), "ChannelShuffle": lambda call: {"group": int(call.get("groups"))},
    "Embedding": lambda call: {} if call.get("max_norm") is None else {"max_norm": float(call.get("max_norm"))},
    "BatchNormalization": _batch_norm, "InstanceNormalization": _instance_norm, "GroupNormalization": _group_norm,
    "LpNormalization": _lp_norm, "LRN": _local_norm, **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _last_axes_norm),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mod"), _numbers),
    **dict.fromkeys(("MatMul", "Reshape", "Identity", "StochasticDepth", "PRelu"), _nothing),
    **dict.fromkeys(("Relu", "Sigmoid", "Tanh", "HardSwish", "Swish", "Mish", "Selu", "ChannelSelect"), _nothing),
}  # fmt: skip
"""Readers of attributes, by operator. One without a row keeps the arguments that have an effect."""
