"""Arguments and attributes as JSON data and back."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import fx
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.utils import _pytree as pytree

from irtool.archive.allowed import NotData, Refused
from irtool.archive.limits import check_inputs
from irtool.nests import map_tensors

_DEVICE = re.compile(r"(cpu|cuda|meta|mps|xpu)(:\d{1,3})?")
Walk = Callable[[Any], Any]


@dataclass(frozen=True)
class Coder:
    """One kind of value, written as `{tag: data}`.

    Attributes:
        kinds: the classes, matched exactly: a subclass may behave otherwise.
        write: from the value and the writer of its parts to JSON data.
        read: the inverse.
    """

    kinds: tuple[type, ...]
    write: Callable[[Any, Walk], Any]
    read: Callable[[Any, Walk], Any]


@dataclass(frozen=True)
class Described:
    """A tensor whose values do not matter."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def _torch_name(value: Any) -> str:
    return str(value).removeprefix("torch.")


def _torch_constant(kind: type) -> Callable[[Any, Walk], Any]:
    def read(name: Any, _: Walk) -> Any:
        found = vars(torch).get(name) if isinstance(name, str) else None
        if not isinstance(found, kind):
            raise Refused(f"holds a {kind.__name__} {name!r} that torch does not have")
        return found

    return read


def _constant(kind: type) -> Coder:
    return Coder((kind,), lambda value, _: _torch_name(value), _torch_constant(kind))


def _device(name: Any) -> torch.device:
    """The CPU, onto which everything loads; a device that torch has no name for is refused, and none is woken up."""
    if not isinstance(name, str) or _DEVICE.fullmatch(name) is None:
        raise Refused(f"holds a device {name!r:.60}")
    return torch.device("meta" if name == "meta" else "cpu")


def _pairs(data: Any, walk: Walk) -> list[tuple[Any, Any]]:
    return [(walk(key), walk(value)) for key, value in data]


def _write_pairs(value: Mapping[Any, Any], walk: Walk) -> list[list[Any]]:
    return [[walk(key), walk(item)] for key, item in value.items()]


CODERS: dict[str, Coder] = {
    "tuple": Coder((tuple,), lambda value, walk: [walk(item) for item in value], lambda data, walk: tuple(walk(item) for item in data)),
    "dict": Coder((dict, immutable_dict), _write_pairs, lambda data, walk: dict(_pairs(data, walk))),
    "ordered": Coder((OrderedDict,), _write_pairs, lambda data, walk: OrderedDict(_pairs(data, walk))),
    "slice": Coder(
        (slice,), lambda value, walk: [walk(value.start), walk(value.stop), walk(value.step)], lambda data, walk: slice(*map(walk, data))
    ),
    "range": Coder((range,), lambda value, _: [value.start, value.stop, value.step], lambda data, _: range(*map(int, data))),
    "size": Coder((torch.Size,), lambda value, _: [int(size) for size in value], lambda data, _: torch.Size(map(int, data))),
    "ellipsis": Coder((type(Ellipsis),), lambda value, _: True, lambda data, _: Ellipsis),
    "complex": Coder((complex,), lambda value, walk: [walk(value.real), walk(value.imag)], lambda data, walk: complex(*map(walk, data))),
    "set": Coder((set,), lambda value, walk: [walk(item) for item in sorted(value)], lambda data, walk: {walk(item) for item in data}),
    "device": Coder((torch.device,), lambda value, _: str(value), lambda data, _: _device(data)),
    "dtype": _constant(torch.dtype),
    "layout": _constant(torch.layout),
    "memory_format": _constant(torch.memory_format),
    "tensor": Coder(
        (Described,),
        lambda value, walk: [list(value.shape), walk(value.dtype)],
        lambda data, walk: Described(tuple(map(int, data[0])), walk(data[1])),
    ),
}
_BY_KIND = {kind: tag for tag, coder in CODERS.items() for kind in coder.kinds}


def encode(value: Any) -> Any:
    """A value as JSON data.

    Plain JSON values stand for themselves, lists included; everything else is `{tag: data}`. Nodes are named.

    Raises:
        NotData: the value, or a part of it, is of no kind in `CODERS`.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if type(value) in (list, immutable_list):
        return [encode(item) for item in value]
    if isinstance(value, fx.Node):
        return {"node": value.name}
    tag = _BY_KIND.get(type(value))
    if tag is not None:
        return {tag: CODERS[tag].write(value, encode)}
    raise NotData(f"holds a {type(value).__module__}.{type(value).__qualname__}")


def decode(data: Any, nodes: Mapping[str, fx.Node] = MappingProxyType({}), *, described: bool = False) -> Any:
    """The inverse of `encode`.

    Args:
        data: what `encode` returned.
        nodes: the nodes that may be named.
        described: whether tensors may be described, as those of example inputs are: anywhere else a description is no value.

    Raises:
        Refused: the data holds a tag that is not known here.
    """
    if isinstance(data, list):
        return [decode(item, nodes, described=described) for item in data]
    if not isinstance(data, dict):
        return data
    ((tag, inner),) = data.items()
    if tag == "node":
        return nodes[inner]
    if tag == "float":
        return float(inner)
    if tag not in CODERS:
        raise Refused(f"holds a value of an unknown kind {tag!r}")
    if CODERS[tag].kinds == (Described,) and not described:
        raise Refused("describes a tensor where a value belongs")
    return CODERS[tag].read(inner, lambda part: decode(part, nodes, described=described))


def encode_inputs(inputs: Any) -> Any:
    """Example inputs as data: nesting, shapes and types; no values. Raises NotData."""
    return encode(map_tensors(inputs, lambda tensor: Described(tuple(tensor.shape), tensor.dtype)))


def decode_inputs(data: Any) -> Any:
    """Example inputs from their description: numbers drawn from a normal distribution with a fixed seed, integers zero.

    Random rather than zero, since checks run on them and zeros would hide a wrong weight.
    """
    generator = torch.Generator().manual_seed(0)

    def make(leaf: Any) -> Any:
        if not isinstance(leaf, Described):
            return leaf
        if not leaf.dtype.is_floating_point:
            return torch.zeros(leaf.shape, dtype=leaf.dtype)
        return torch.randn(leaf.shape, generator=generator).to(leaf.dtype)

    inputs = decode(data, described=True)
    leaves = pytree.tree_leaves(inputs)
    odd = next((leaf for leaf in leaves if type(leaf) not in _LEAVES), None)
    if odd is not None or not isinstance(inputs, tuple):
        raise Refused(f"has an example input of kind {type(odd).__name__}")
    check_inputs([(leaf.shape, leaf.dtype) for leaf in leaves if isinstance(leaf, Described)])
    return pytree.tree_map(make, inputs)


_LEAVES = frozenset({Described, bool, int, float, str, type(None), torch.dtype, torch.device})
