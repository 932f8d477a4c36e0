"""A node's attributes in one form, whichever host it comes from: what `Graph.text` prints and what `diff` compares.

A host writes `stride=2`, `strides=[2, 2]`, or leaves a default out; `ReLU6` is a Clip without bounds to torch and one with two
constants to ONNX. Here each operator has one row that says what its attributes are. Whatever the sizes of inputs and outputs
tell already (the sizes of a Reshape, the parts of a Split) is left out; so is what has no effect in eval mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from irtool.ir.graph import Node

Attrs = dict[str, Any]
_SILENT = frozenset(
    {"inplace", "training", "tensors", "momentum", "memory_format", "dtype", "requires_grad", "in_features", "out_features"}
)
_SPREADABLE = frozenset({"stride", "padding", "dilation", "kernel", "output_padding", "output"})
_DIGITS = 6
"""Numbers are compared at float32's precision: ONNX stores 1e-5 as 9.9999997e-06."""


def canonical(node: Node) -> Attrs:
    """The attributes of a node as JSON data, in one form for all hosts."""
    rule = _RULES.get(node.op, _others)
    found = {**rule(node, _Raw(node)), **_variant(node)}
    return {name: _spread(plain(value)) if name in _SPREADABLE else plain(value) for name, value in found.items()}


def _variant(node: Node) -> Attrs:
    """Which of the functions that share an operator's rule a node is: a softmin beside a softmax."""
    callee = node.callee.lower()
    return {word: True for part, word in _VARIANTS.get(node.op, ()) if part in callee}


def _spread(value: Any) -> Any:
    """Sizes that are the same along each axis as one number, as in `stride=2`."""
    return value[0] if isinstance(value, list) and value and all(item == value[0] for item in value) else value


def plain(value: Any) -> Any:
    """A value as JSON data; real numbers at float32's precision."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return plain(value.item()) if math.prod(value.shape) == 1 else f"tensor{list(value.shape)}"
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(f"{float(value):.{_DIGITS}g}")
    if value is None or isinstance(value, str | bool | int):
        return value
    return int(value) if isinstance(value, np.integer) else getattr(value, "__name__", None) or str(value)


class _Raw:
    """What the host says about a node: the view's attributes, then those of the module or of the ONNX node."""

    def __init__(self, node: Node) -> None:
        host, self.onnx = node.host, type(node.host).__module__.startswith("onnx_graphsurgeon")
        self.known: dict[str, Any] = dict(node.attrs)
        self.module = None
        if self.onnx:
            self.known.update(host.attrs)
        elif getattr(host, "op", None) == "call_module" and host.graph.owning_module is not None:
            self.module = host.graph.owning_module.get_submodule(str(host.target))
            self.known.update({k: v for k, v in vars(self.module).items() if k[0] != "_" and k not in self.known})

    def get(self, *names: str, default: Any = None) -> Any:
        """The first of these attributes that is there and not None."""
        return next((self.known[name] for name in names if self.known.get(name) is not None), default)

    def constant(self, node: Node, index: int) -> Any:
        """An ONNX input that is one number and no operand in the view; None otherwise."""
        if not self.onnx or len(node.host.inputs) <= index:
            return None
        tensor = node.host.inputs[index]
        values = getattr(tensor, "values", None) if tensor.name else None
        return None if values is None or np.size(values) != 1 else np.asarray(values).reshape(-1)[0].item()


Rule = Callable[["Node", _Raw], Attrs]


def _each(value: Any, axes: int) -> list[Any]:
    """One entry for each axis, as one number stands for all of them in torch."""
    found = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return found * axes if len(found) == 1 else found[:axes]


def _nothing(node: Node, raw: _Raw) -> Attrs:
    return {}


def _others(node: Node, raw: _Raw) -> Attrs:
    return {key: value for key, value in node.attrs.items() if key not in _SILENT and value is not None}


def _conv(node: Node, raw: _Raw) -> Attrs:
    weight = node.get("weight")
    axes = len(weight.sizes) - 2 if weight is not None else len(node.output.sizes) - 2
    dilation, padding = _each(raw.get("dilation", "dilations", default=1), axes), raw.get("padding", default=0)
    if isinstance(padding, str):
        kernel = weight.sizes[2:] if weight is not None else (1,) * axes
        padding = 0 if padding == "valid" else [d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)]
    found: Attrs = {"stride": _each(raw.get("stride", "strides", default=1), axes), "padding": _each(padding, axes), "dilation": dilation}
    found["groups"] = int(raw.get("groups", "group", default=1))
    if node.op == "ConvTranspose" or node.attrs.get("transposed"):
        found["output_padding"] = _each(raw.get("output_padding", default=0), axes)
    return found


def _pool(node: Node, raw: _Raw) -> Attrs:
    """Windows; a window over the whole of an input is written `all`, so that it does not depend on the example's sizes."""
    callee = node.callee.lower()
    kind = next((name for name, part in (("max", "max"), ("average", "av"), ("lp", "lp")) if part in callee), callee)
    axes = len(node.output.sizes) - 1 if callee.endswith("1d") and len(node.output.sizes) == 2 else max(len(node.output.sizes) - 2, 1)
    before, after = node.input.sizes[-axes:], node.output.sizes[-axes:]
    if "adaptive" in callee or "global" in callee:
        whole = all(size == 1 for size in after)
        even = all(a % b == 0 for a, b in zip(before, after, strict=True))
        steps = [a // b for a, b in zip(before, after, strict=True)]
        return {"kind": kind, **({"kernel": "all"} if whole else {"kernel": steps, "stride": steps} if even else {"output": list(after)})}
    kernel = _each(raw.get("kernel_size", "kernel_shape", default=1), axes)
    stride = _each(raw.get("stride", "strides") or (1 if raw.onnx else kernel), axes)
    padding = _each(raw.get("padding", default=0) if not raw.onnx else list(raw.get("pads", default=[0] * axes))[:axes], axes)
    if kernel == list(before) and not any(padding):
        return {"kind": kind, "kernel": "all"}
    found: Attrs = {"kind": kind, "kernel": kernel, "stride": stride, "padding": padding}
    if raw.get("ceil_mode", default=False):
        found["ceil"] = True
    if kind == "average" and any(padding):
        found["count_padding"] = bool(raw.get("count_include_pad", default=not raw.onnx))
    return found


def _eps(node: Node, raw: _Raw) -> Attrs:
    found = {"eps": float(raw.get("eps", "epsilon", default=1e-5))}
    if node.op == "GroupNormalization":
        found["groups"] = int(raw.get("num_groups", default=1))
    shape = raw.get("normalized_shape")
    return {**found, "axes": len(shape)} if isinstance(shape, Sequence) else found


def _axis(node: Node, raw: _Raw, *, default: int = 0) -> int:
    dim = raw.get("dim", "axis", default=default)
    rank = len(node.input.sizes) + (node.op == "Stack")
    return int(dim) % max(rank, 1) if isinstance(dim, int) else default


def _along(default: int) -> Rule:
    def rule(node: Node, raw: _Raw) -> Attrs:
        return {"axis": _axis(node, raw, default=default)}

    return rule


def _cumsum(node: Node, raw: _Raw) -> Attrs:
    flags = {name: True for name in ("exclusive", "reverse") if raw.get(name, default=0)}
    return {"axis": _axis(node, raw, default=0), **flags}


def _split(node: Node, raw: _Raw) -> Attrs:
    return {"axis": _axis(node, raw), "parts": len(node.outputs)}


def _transpose(node: Node, raw: _Raw) -> Attrs:
    rank, dims = len(node.input.sizes), node.attrs.get("dims")
    if isinstance(dims, int) and node.callee.rsplit(".", 1)[-1] == "permute":  # x.permute(0, 2, 1): one argument an axis
        listed = [dims, *(node.attrs[f"arg{index}"] for index in range(2, rank + 1) if f"arg{index}" in node.attrs)]
        return {"order": [int(axis) % rank for axis in listed]}
    if dims is None or (isinstance(dims, tuple | list) and len(dims) == rank and "arg2" not in node.attrs):
        order = [int(d) % rank for d in dims] if dims is not None else list(range(rank))[::-1]
        return {"order": order}
    other = node.attrs.get("arg2")
    if not isinstance(dims, int) or not isinstance(other, int) or "move" in node.callee:
        return _others(node, raw)
    order = list(range(rank))
    order[dims], order[other] = order[other], order[dims]
    return {"order": order}


def _reduce(node: Node, raw: _Raw) -> Attrs:
    words = node.callee.lower().removeprefix("reduce").split(".")
    kind = (words[1] if words[0] == "aten" and len(words) > 1 else words[-1]).removeprefix("a" if words[-1] in ("amax", "amin") else "")
    rank, dims = len(node.input.sizes), node.attrs.get("dim")
    axes = (
        sorted(int(d) % rank for d in (dims if isinstance(dims, Sequence) else [dims])) if dims is not None and rank else list(range(rank))
    )
    return {"kind": kind, "axes": axes, "keepdim": bool(node.attrs.get("keepdim", False))}


def _clip(node: Node, raw: _Raw) -> Attrs:
    if "relu6" in node.callee.lower():
        return {"min": 0.0, "max": 6.0}
    defaults = (-1.0, 1.0) if "hardtanh" in node.callee.lower() else (None, None)
    low = raw.get("min", "min_val", "arg1", default=defaults[0])
    high = raw.get("max", "max_val", "arg2", default=defaults[1])
    return {name: float(bound) for name, bound in (("min", low), ("max", high)) if bound is not None}


def _parameter(name: str, *names: str, default: float, onnx_default: float | None = None) -> Rule:
    """One number that shapes an activation."""

    def rule(node: Node, raw: _Raw) -> Attrs:
        value = raw.get(name, *names, default=onnx_default if raw.onnx and onnx_default is not None else default)
        return {name: float(value) if isinstance(value, int | float) else value}

    return rule


def _hard_sigmoid(node: Node, raw: _Raw) -> Attrs:
    return {"alpha": raw.get("alpha", default=0.2 if raw.onnx else 1 / 6), "beta": raw.get("beta", default=0.5)}


def _gelu(node: Node, raw: _Raw) -> Attrs:
    return {"approximate": raw.get("approximate", default="none")}


def _numbers(node: Node, raw: _Raw) -> Attrs:
    """The numbers that a sum, product or power is taken with, by their place."""
    found: Attrs = {}
    for index, role in enumerate(("input", "other", "third")):
        value = node.attrs.get(role) if not raw.onnx else raw.constant(node, index)
        if isinstance(value, bool | int | float) and role not in node.operands:
            found["other" if node.op in ("Add", "Mul") else role] = float(value)
    if node.attrs.get("alpha") not in (None, 1):
        found["alpha"] = node.attrs["alpha"]
    return found


def _resize(node: Node, raw: _Raw) -> Attrs:
    mode = str(raw.get("mode", default="nearest"))
    mode = mode.removeprefix("bi").removeprefix("tri")
    aligned = raw.get("align_corners", default=raw.get("coordinate_transformation_mode") == "align_corners")
    return {"mode": mode, **({"align_corners": True} if aligned else {})}


def _pad(node: Node, raw: _Raw) -> Attrs:
    amounts = raw.get("pad", "padding", default=())
    found = list(amounts) if isinstance(amounts, Sequence) else [amounts] * 2 * (len(node.input.sizes) - 2)
    while len(found) >= 2 and not any(found[-2:]):
        found = found[:-2]
    callee = node.callee.lower()
    mode = next((name for name in ("reflect", "replicat") if name in callee), str(raw.get("mode", default="constant")))
    return {"amounts": found, "mode": "edge" if mode.startswith("replicat") else mode}


def _depth(node: Node, raw: _Raw) -> Attrs:
    return {
        "block": raw.get("blocksize", "upscale_factor", "downscale_factor"),
        "mode": raw.get("mode", default="DCR" if raw.onnx else "CRD"),
    }


def _slice(node: Node, raw: _Raw) -> Attrs:
    """The cuts (axis, start, end, step) that take anything away."""
    if not raw.onnx:
        return _fx_slice(node, raw)
    starts, ends = (list(node.attrs.get(name) or ()) for name in ("starts", "ends"))
    axes = list(node.attrs.get("axes") or range(len(starts)))
    steps = list(node.attrs.get("steps") or [1] * len(starts))
    return _cuts(node, list(zip(axes, map(slice, starts, ends, steps), strict=False)))


def _fx_slice(node: Node, raw: _Raw) -> Attrs:
    given = node.attrs.get("arguments")
    items: list[Any] = list(given) if isinstance(given, tuple) else [given]
    if node.callee.endswith("narrow") and len(items) == 3 and all(isinstance(item, int) for item in items):
        return _cuts(node, [(items[0], slice(items[1], items[1] + items[2]))])
    flat: list[Any] = list(items[0]) if len(items) == 1 and isinstance(items[0], tuple) else items
    if node.callee.endswith("getitem") and all(isinstance(item, slice) for item in flat):
        return _cuts(node, list(enumerate(flat)))
    return _others(node, raw)


def _cuts(node: Node, cuts: Iterable[tuple[int, slice]]) -> Attrs:
    sizes, found = node.input.sizes, []
    for axis, cut in cuts:
        start, end, step = cut.indices(sizes[axis])
        if (start, end, step) != (0, sizes[axis], 1):
            found.append([axis % len(sizes), start, end, step])
    return {"cuts": sorted(found)}


def _einsum(node: Node, raw: _Raw) -> Attrs:
    return {"equation": str(node.attrs.get("equation", "")).replace(" ", "")}


_RULES: Mapping[str, Rule] = {
    "Conv": _conv, "ConvTranspose": _conv, "Pool": _pool, "Softmax": _along(-1), "Split": _split, "Transpose": _transpose, "Reduce": _reduce,
    "Clip": _clip, "HardSigmoid": _hard_sigmoid, "Gelu": _gelu, "Resize": _resize, "Pad": _pad, "Slice": _slice, "Einsum": _einsum,
    "DepthToSpace": _depth, "SpaceToDepth": _depth, "Concat": _along(0), "Stack": _along(0), "Cumsum": _cumsum, "Glu": _along(-1), "Gather": _along(0),
    "LeakyRelu": _parameter("alpha", "negative_slope", "arg1", default=0.01), "Elu": _parameter("alpha", "arg1", default=1.0),
    "Celu": _parameter("alpha", "arg1", default=1.0),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization", "RMSNormalization"), _eps),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mod"), _numbers),
    **dict.fromkeys(("Gemm", "MatMul", "Reshape", "Expand", "Identity", "Dropout", "StochasticDepth", "PRelu", "Embedding"), _nothing),
    **dict.fromkeys(("Relu", "Sigmoid", "Tanh", "HardSwish", "Swish", "Mish", "Selu", "ChannelSelect"), _nothing),
}  # fmt: skip
"""What the attributes of an operator are. One without a row keeps those that its host gives."""
_VARIANTS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "Softmax": (("log", "log"), ("min", "negated"), ("hard", "hard")),
    "Cumsum": (("prod", "product"),),
    "Trilu": (("triu", "upper"),),
    "Roll": (("flip", "flipped"), ("fliplr", "columns"), ("flipud", "rows"), ("rot90", "turned")),
    "Expand": (("interleave", "interleaved"),),
    "Fourier": (("_i", "inverse"), ("rfft", "real"), ("hfft", "hermitian"), ("shift", "shifted")),
}
"""Functions that one rule serves, though they compute other numbers: a part of their names, and the word that tells them apart."""
