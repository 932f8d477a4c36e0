"""How operators of the view are written in torch: the call that makes one, and where a call or a module keeps its attributes.

Attributes have ONNX's names and forms on the way in. What a table does not have is refused: a program is never edited half.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from irtool.errors import GraphError
from irtool.hosts.torch.sizes.arguments import torch_name
from irtool.ir.nodes import Value

Call = tuple[Any, tuple[Any, ...]]
"""A function, and its arguments."""
Attrs = dict[str, Any]
_Writer = Callable[[Sequence[fx.Node], Sequence[Value], Attrs], Call]
"""Makes a call of what is read (host nodes, and values of the view) and attributes, of which it takes out those that it has written."""


def call_of(op: str, reads: Sequence[fx.Node], values: Sequence[Value], attrs: Mapping[str, Any]) -> Call:
    """The call that an operator of the view is in torch.

    Raises:
        GraphError: no row writes this operator, or with such operands or attributes.
    """
    write, left = _WRITERS.get(op), dict(attrs)
    if write is None:
        raise GraphError(f"{op} cannot be inserted into a torch program", remedy=f"Of {', '.join(sorted(_WRITERS))} one can.")
    try:
        call = write(reads, values, left)
    except (KeyError, IndexError, ValueError) as error:
        raise GraphError(f"{op} lacks an operand or an attribute ({error})", remedy="Give those that ONNX requires.") from error
    if left:
        raise GraphError(f"{op} has no attribute {next(iter(left))!r} here", remedy="Leave it out.")
    return call


def _function(target: Any) -> _Writer:
    return lambda reads, values, attrs: (target, tuple(reads))


def _shaped(target: Any, *defaults: tuple[str, Any]) -> _Writer:
    """A function of its operands and then of some attributes, with ONNX's defaults."""
    return lambda reads, values, attrs: (target, (*reads, *(attrs.pop(name, default) for name, default in defaults)))


def _conv(reads: Sequence[fx.Node], values: Sequence[Value], attrs: Attrs) -> Call:
    axes = len(values[1].sizes) - 2
    if tuple(attrs.pop("kernel_shape", values[1].sizes[2:])) != values[1].sizes[2:]:
        raise ValueError("kernel_shape is not the weight's")
    padding = _even(attrs.pop("pads", (0,) * 2 * axes))
    stride, dilation = (tuple(attrs.pop(name, (1,) * axes)) for name in ("strides", "dilations"))
    bias = reads[2] if len(reads) > 2 else None
    target = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}[axes]
    return target, (reads[0], reads[1], bias, stride, padding, dilation, attrs.pop("group", 1))


def _even(pads: Sequence[int]) -> tuple[int, ...]:
    """ONNX's pads (all beginnings, then all ends) as torch's padding, which is the same at both."""
    half = len(pads) // 2
    if tuple(pads[:half]) != tuple(pads[half:]):
        raise ValueError("pads differ between the two ends")
    return tuple(pads[:half])


def _gemm(reads: Sequence[fx.Node], values: Sequence[Value], attrs: Attrs) -> Call:
    if attrs.pop("transB", 0) != 1:
        raise ValueError("transB is not 1")
    return F.linear, tuple(reads)


def _batch_norm(reads: Sequence[fx.Node], values: Sequence[Value], attrs: Attrs) -> Call:
    x, weight, bias, mean, var = reads
    return F.batch_norm, (x, mean, var, weight, bias, False, 0.1, attrs.pop("epsilon", 1e-5))


def _gather(reads: Sequence[fx.Node], values: Sequence[Value], attrs: Attrs) -> Call:
    if len(values[1].sizes) != 1:
        raise ValueError("the index is no list")
    return torch.index_select, (reads[0], attrs.pop("axis", 0), reads[1])


def _pad(reads: Sequence[fx.Node], values: Sequence[Value], attrs: Attrs) -> Call:
    pads = attrs.pop("pads")
    half = len(pads) // 2
    return F.pad, (*reads, [amount for axis in reversed(range(half)) for amount in (pads[axis], pads[half + axis])])


def _slice(reads: Sequence[fx.Node], values: Sequence[Value], attrs: Attrs) -> Call:
    starts, ends, rank = attrs.pop("starts"), attrs.pop("ends"), len(values[0].sizes)
    cuts = [slice(None)] * rank
    for start, end, axis, step in zip(
        starts, ends, attrs.pop("axes", range(len(starts))), attrs.pop("steps", (1,) * len(starts)), strict=True
    ):
        cuts[axis % rank] = slice(start, end, step)
    return operator.getitem, (*reads, tuple(cuts))


_WRITERS: dict[str, _Writer] = {
    "Relu": _function(torch.relu), "Sigmoid": _function(torch.sigmoid), "Tanh": _function(torch.tanh), "Exp": _function(torch.exp),
    "Sqrt": _function(torch.sqrt), "Abs": _function(torch.abs), "Neg": _function(torch.neg), "HardSwish": _function(F.hardswish),
    "Identity": _function(torch.clone), "Add": _function(operator.add), "Sub": _function(operator.sub), "Mul": _function(operator.mul),
    "Div": _function(operator.truediv), "Pow": _function(torch.pow), "Max": _function(torch.maximum), "Min": _function(torch.minimum),
    "MatMul": _function(torch.matmul),
    "LeakyRelu": _shaped(F.leaky_relu, ("alpha", 0.01)), "Elu": _shaped(F.elu, ("alpha", 1.0)), "Softmax": _shaped(torch.softmax, ("axis", -1)),
    "Clip": _shaped(torch.clamp, ("min", None), ("max", None)),
    "Transpose": lambda reads, values, attrs: (torch.permute, (*reads, list(attrs.pop("perm")))),
    "Reshape": lambda reads, values, attrs: (torch.reshape, (*reads, list(attrs.pop("shape")))),
    "Concat": lambda reads, values, attrs: (torch.cat, (list(reads), attrs.pop("axis"))),
    "Gather": _gather, "Pad": _pad, "Slice": _slice, "Conv": _conv, "Gemm": _gemm, "BatchNormalization": _batch_norm,
}  # fmt: skip

_WINDOW = {"strides": ("stride", 3), "pads": ("padding", 4), "dilations": ("dilation", 5), "group": ("groups", 6)}
_PLACES: dict[str, dict[str, tuple[str, int]]] = {
    "leaky_relu": {"alpha": ("negative_slope", 1)},
    **{key: {"alpha": ("alpha", 1)} for key in ("elu", "celu")},
    **{key: {"min": ("min", 1), "max": ("max", 2)} for key in ("clamp", "clip")},
    "hardtanh": {"min": ("min_val", 1), "max": ("max_val", 2)},
    **{key: {"axis": ("dim", 1)} for key in ("softmax", "log_softmax", "cat", "concat", "concatenate", "index_select")},
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _WINDOW),
    **{key: {"group": ("groups", 6)} for key in ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")},
    "convolution": {"group": ("groups", 8)},
    "batch_norm": {"epsilon": ("eps", 7)},
    "layer_norm": {"epsilon": ("eps", 4), "normalized_shape": ("normalized_shape", 1)},
    "rms_norm": {"normalized_shape": ("normalized_shape", 1)},
    "group_norm": {"epsilon": ("eps", 4), "num_groups": ("num_groups", 1)},
}
"""Arguments in which functions and methods take an attribute: name and position."""
_FIELDS = {
    "alpha": ("negative_slope", "alpha"), "min": ("min_val",), "max": ("max_val",), "axis": ("dim",), "strides": ("stride",),
    "pads": ("padding",), "dilations": ("dilation",), "group": ("groups",), "epsilon": ("eps",), "num_groups": ("num_groups",),
    "normalized_shape": ("normalized_shape",),
}  # fmt: skip
"""Names of an attribute in modules."""


def write_argument(host: fx.Node, name: str, value: Any) -> bool:
    """Change an attribute of a call of a function or method; False if it is not known to take one."""
    if isinstance(host.target, torch._ops.OpOverload):
        listed = [argument.name for argument in host.target._schema.arguments]
        key = next((key for key in _FIELDS.get(name, ()) if key in listed), None)
        place = None if key is None else (key, listed.index(key))
    else:
        place = _PLACES.get(torch_name(host), {}).get(name)
    if place is None:
        return False
    key, position = place
    written = _torch_form(name, value)
    if len(host.args) > position:
        host.args = (*host.args[:position], written, *host.args[position + 1 :])
    else:
        host.kwargs = {**host.kwargs, key: written}
    return True


def field_of(module: nn.Module, name: str) -> str | None:
    """Return what a module calls an attribute; None if it has no such."""
    return next((key for key in _FIELDS.get(name, ()) if key in vars(module)), None)


def write_field(module: nn.Module, name: str, value: Any) -> bool:
    """Change an attribute of a module of `torch.nn`; False if it is not known to have one."""
    key = field_of(module, name)
    if key is None or not type(module).__module__.startswith("torch.nn."):
        return False
    written = _torch_form(name, value)
    setattr(module, key, written)
    if key == "padding" and hasattr(module, "_reversed_padding_repeated_twice"):  # what padding modes other than zeros go by
        module._reversed_padding_repeated_twice = [amount for amount in reversed(written) for _ in range(2)]  # type: ignore[assignment]
    return True


def _torch_form(name: str, value: Any) -> Any:
    if name == "pads":
        return _even(value)
    return tuple(value) if isinstance(value, list) else value
