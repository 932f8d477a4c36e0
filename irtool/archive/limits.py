"""Limits of a file's demands, checked before they are met.

`irtool.load` of any file then ends within seconds, in memory of at most three times the file's size and 2 GiB on top.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from irtool.archive.allowed import Refused
from irtool.archive.kinds import is_dict, is_integer, is_sequence, is_tensor

HEADER_BYTES = 32 << 20
NODES = 1 << 14
MODULES = 1 << 15
VALUES = 1 << 18
DEPTH = 40
HISTORY = 1000
INPUT_BYTES = 1 << 30
VALUE_BYTES = 1 << 36
MADE_BYTES = 1 << 28
ALL_MADE_BYTES = 1 << 30
TRIED_BYTES = 1 << 26
PARTS = 1 << 16
AXES = 25
OPERANDS = 16
INTEGER_WORDS = 64
SEQUENCE_PARTS = 256
REPEATED = 64


def check_header(header: Mapping[str, Any]) -> None:
    """The parts of a header that become values here: few enough, not too deep, no integer beyond 64 bits. Raises `Refused`."""
    program, modules = header["program"] or {}, header["modules"] or {}
    if len(program.get("nodes", ())) > NODES:
        raise Refused(f"holds {len(program['nodes']):,} nodes, and irtool reads up to {NODES:,}")
    if max(len(modules), len(header["tensors"]), len(header["training"])) > MODULES:
        raise Refused(f"holds more than {MODULES:,} modules or tensors")
    if len(header["history"]) > HISTORY:
        raise Refused(f"has a history of more than {HISTORY:,} steps")
    for part in (header["inputs"], program):
        _check_values(part, VALUES)
    _check_values([modules, header["tensors"]], 8 * VALUES)


def _check_values(root: Any, most: int) -> None:
    level, depth, count = [root], 0, 0
    while level:
        count, depth = count + len(level), depth + 1
        if count > most or depth > DEPTH:
            raise Refused(f"holds more than {most:,} values, or nests them more than {DEPTH} deep")
        below: list[Any] = []
        for value in level:
            kind = type(value)
            if kind is dict:
                below.extend(value.values())
            elif kind is list:
                below.extend(value)
            elif kind is int and not is_integer(value):
                raise Refused("holds an integer of more than 64 bits")
        level = below


def bytes_of(shape: Sequence[int], dtype: torch.dtype) -> int:
    """The bytes that a tensor takes."""
    count = dtype.itemsize
    for size in shape:
        count *= size
    return count


def check_inputs(described: Sequence[tuple[Sequence[int], torch.dtype]]) -> None:
    """The example inputs, before they are drawn. Raises `Refused`."""
    for shape, _ in described:
        if len(shape) > AXES or any(size < 0 for size in shape):
            raise Refused(f"has an example input of {len(shape)} axes, or of a negative size")
    total = sum(max(bytes_of(shape, dtype), bytes_of(shape, torch.float32)) for shape, dtype in described)
    if total > INPUT_BYTES:
        raise Refused(f"has example inputs of {total:,} bytes, and irtool makes up to {INPUT_BYTES:,}")


class Budget:
    """The resources that a program has used so far, while it is tried out node by node."""

    def __init__(self) -> None:
        self.made = 0
        self.parts = 0
        self._sizes: dict[fx.Node, int] = {}
        """Bounds of integers and shapes, whatever the inputs are: in words of 64 bits, and in pieces that were put together."""

    def check_call(self, name: str, bound: Mapping[str, Any], args: Sequence[Any], module: nn.Module | None) -> None:
        """Before a call: into how many parts it goes, and how large plain integers and lists become. Raises `Refused`."""
        if name in _GROWING and len(args) == 2:
            _check_plain(name, *args)
        if isinstance(module, nn.RNNBase):
            self.parts += max(args[0].shape, default=0) * module.num_layers * (2 if module.bidirectional else 1)
        elif isinstance(module, nn.Sequential):
            self.parts += sum(1 for _ in module.modules())
        elif name in _PARTS and is_tensor(bound.get("tensor", bound.get("self"))):
            self.parts += max(1, _PARTS[name](bound.get("tensor", bound.get("self")), bound))
        elif name == "einsum" and len(args) > OPERANDS:
            raise Refused(f"multiplies {len(args) - 1} tensors at once")
        if self.parts > PARTS:
            raise Refused(f"takes tensors apart into more than {PARTS:,} parts")

    def check_result(self, result: Any, made: bool) -> None:
        """After a call: how large its tensors are. `made`: from nothing, so that memory is taken. Raises `Refused`."""
        if is_tensor(result):
            size = bytes_of(result.shape, result.dtype)
            self.made += size if made else 0
            if size > (MADE_BYTES if made else VALUE_BYTES) or self.made > ALL_MADE_BYTES:
                raise Refused(f"makes a tensor of {size:,} bytes, more than {MADE_BYTES if made else VALUE_BYTES:,} or with others more than {ALL_MADE_BYTES:,}")  # fmt: skip
            if result.dim() > AXES:
                raise Refused(f"makes a tensor of {result.dim()} axes")
        elif is_sequence(result):
            if len(result) > PARTS:
                raise Refused(f"makes a list of {len(result):,} members")
            for item in result:
                self.check_result(item, made)
        elif is_dict(result):
            for item in result.values():
                self.check_result(item, made)
        elif type(result) is int and not is_integer(result):
            raise Refused("makes an integer of more than 64 bits")

    def check_growth(self, node: fx.Node, name: str, args: Sequence[Any], result: Any) -> None:
        """Bound integers and shapes whatever sizes come later: what is 1 on the example can be 2, squared forty times. Raises `Refused`."""
        numbers, lists = type(result) is int, is_sequence(result) and all(type(item) is int for item in result)
        if not numbers and not lists:
            return
        sizes = [self._size(arg) for arg in node.args]
        size = max(sizes, default=1)
        repeat = name in ("mul", "imul") and lists
        if repeat:
            count, piece = (sizes[1], sizes[0]) if is_sequence(args[0]) else (sizes[0], sizes[1])
            size = REPEATED if count == 1 and piece <= 8 else SEQUENCE_PARTS + 1
        elif name in ("mul", "imul") or (name in ("add", "iadd") and lists):
            size = sum(sizes)
        elif name in ("pow", "ipow"):
            power = args[1] if isinstance(node.args[1], int) else INTEGER_WORDS + 1
            size = sizes[0] * max(1, power)
        elif name in ("ceil", "floor", "int", "round"):
            size = 16  # the largest float
        if size > (SEQUENCE_PARTS if lists else INTEGER_WORDS):
            raise Refused("lets an integer or a shape grow without end")
        self._sizes[node] = size

    def _size(self, arg: Any) -> int:
        if isinstance(arg, fx.Node):
            return self._sizes.get(arg, 1)
        return max(map(self._size, arg), default=1) if isinstance(arg, list | tuple) else 1


_GROWING = frozenset({"mul", "imul", "pow", "ipow"})


def _check_plain(name: str, a: Any, b: Any) -> None:
    """A product or power of what is no tensor, before Python computes it."""
    if name in ("pow", "ipow"):
        if type(a) is int and type(b) is int and abs(b) > INTEGER_WORDS:
            raise Refused(f"raises an integer to the power of {b:,}")
    elif is_sequence(a) or is_sequence(b):
        items, count = (a, b) if is_sequence(a) else (b, a)
        if not is_integer(count) or len(items) * max(0, count) > PARTS:
            raise Refused(f"repeats {len(items)} sizes {count!r} times")


def _axis(tensor: torch.Tensor, bound: Mapping[str, Any]) -> int:
    """The size of the axis along which a tensor is taken apart."""
    axis = bound.get("dim", 0)
    return tensor.shape[axis] if type(axis) is int and -tensor.dim() <= axis < tensor.dim() else max(tensor.shape, default=0)


def _pieces(*names: str) -> Callable[[torch.Tensor, Mapping[str, Any]], int]:
    """Count the parts of a given size, or the sizes that are listed."""

    def count(tensor: torch.Tensor, bound: Mapping[str, Any]) -> int:
        given: Any = next((bound[name] for name in names if name in bound), 1)
        return -(-_axis(tensor, bound) // max(1, given)) if is_integer(given) else len(given)

    return count


def _number(*names: str) -> Callable[[torch.Tensor, Mapping[str, Any]], int]:
    """Count the parts that are asked for."""

    def count(_: torch.Tensor, bound: Mapping[str, Any]) -> int:
        given: Any = next((bound[name] for name in names if name in bound), 1)
        return given if is_integer(given) else len(given) + 1 if is_sequence(given) else 1

    return count


_PARTS: dict[str, Callable[[torch.Tensor, Mapping[str, Any]], int]] = {
    "unbind": _axis,
    "split": _pieces("split_size_or_sections", "split_size", "split_sizes"),
    "split_with_sizes": _pieces("split_sizes"),
    "chunk": _number("chunks"),
    "tensor_split": _number("indices_or_sections", "sections", "indices"),
}
