"""The kinds of values that a saved program may hold, and rows that say which of them an operator takes.

A row lists an operator's arguments in order, each with the letters of its kinds, and after a bar the strings that it takes:

    input=T p=n mode=|batch|row

An argument that begins with `*` takes all further positional ones; what stands behind it is given by name. Letters:

    T  tensor                                       L  list of tensors
    O  list of tensors and None                     i  integer of 32 bits: an axis, a count, a size
    I  integer, or list of them                     J  integer or None, or list of them
    q  integer of 64 bits: a bound of a slice       S  shape: list of integers
    n  number: integer, float or boolean            N  number, or list of them
    b  boolean                                      d  element type
    v  device                                       m  memory format
    l  layout                                       0  None
    x  index: what stands in square brackets        s  any short text
    e  equation of an einsum                        c  key of a dict
    C  items of an ordered dict                     F  the constant False
    V  nest of plain values and tensors             P  nest that can be indexed: a list or dict
    K  a device's `type`                            h  names of a recurrent layer's weights

A list may be a tuple or a `torch.Size`.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import fx, nn

DTYPES = frozenset({
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.complex64, torch.complex128,
})  # fmt: skip
"""Element types that a program may name. The quantised ones come with values of other rules."""
LONGEST_TEXT = 4096
_SEQUENCES = (list, tuple, torch.Size, fx.immutable_collections.immutable_list)
_DICTS = (dict, OrderedDict, fx.immutable_collections.immutable_dict)
_EQUATION = re.compile(r"[A-Za-z.,>\s-]{1,200}")
_WEIGHT = re.compile(r"(weight|bias)_(ih|hh|hr)_l\d{1,3}(_reverse)?")
_DEVICES = frozenset({"cpu", "meta"})

Test = Callable[[Any], bool]


def is_sequence(value: Any) -> bool:
    """Whether a value is a list of a kind that programs hold: also what torch names (`x.max(1)`), but no class of anyone else's."""
    kind = type(value)
    return kind in _SEQUENCES or (issubclass(kind, tuple) and kind.__module__ == "torch.return_types")


def is_dict(value: Any) -> bool:
    """Whether a value is a plain dict."""
    return type(value) in _DICTS


def is_tensor(value: Any) -> bool:
    """Whether a value is an ordinary dense tensor, of no subclass: with values in memory that its shape and strides describe."""
    return type(value) in (torch.Tensor, nn.Parameter, nn.Buffer) and value.layout is torch.strided and not value.is_quantized


def is_integer(value: Any) -> bool:
    """Whether a value is an integer that torch can hold."""
    return type(value) is int and -(2**63) <= value < 2**63


def _is_size(value: Any) -> bool:
    """Whether a value is an integer of 32 bits: what torch computes from a larger one can overflow unseen."""
    return type(value) is int and -(2**31) < value < 2**31


def _is_number(value: Any) -> bool:
    return is_integer(value) or type(value) in (bool, float)


def _each(test: Test) -> Test:
    return lambda value: is_sequence(value) and all(map(test, value))


def _one_or_each(test: Test) -> Test:
    return lambda value: test(value) or (is_sequence(value) and all(map(test, value)))


def _or_none(test: Test) -> Test:
    return lambda value: value is None or test(value)


def _is_index(value: Any, depth: int = 0) -> bool:
    if is_sequence(value):
        return depth < 3 and all(_is_index(item, depth + 1) for item in value)
    if type(value) is slice:
        return all(part is None or is_integer(part) for part in (value.start, value.stop, value.step))
    return value is None or value is Ellipsis or type(value) is bool or is_integer(value) or is_tensor(value)


def _is_text(value: Any) -> bool:
    return type(value) is str and len(value) <= LONGEST_TEXT


def _is_item(value: Any) -> bool:
    return is_sequence(value) and len(value) == 2 and _is_text(value[0]) and is_plain(value[1])


def _is_weight_name(value: Any) -> bool:
    return type(value) is str and _WEIGHT.fullmatch(value) is not None


def _is_dtype(value: Any) -> bool:
    return type(value) is torch.dtype and value in DTYPES


def _is_device(value: Any) -> bool:
    return type(value) is torch.device and value.type in _DEVICES


def is_plain(value: Any) -> bool:
    """Whether a value is a tensor, a plain value, or a nest of them: all that an operator's result may be."""
    if is_sequence(value):
        return all(map(is_plain, value))
    if is_dict(value):
        return all(map(_is_key, value)) and all(map(is_plain, value.values()))
    return is_tensor(value) or value is None or _is_number(value) or _is_dtype(value) or _is_device(value)


def _is_key(value: Any) -> bool:
    return is_integer(value) or _is_text(value)


KINDS: dict[str, Test] = {
    "T": is_tensor,
    "L": _each(is_tensor),
    "O": _each(_or_none(is_tensor)),
    "i": _is_size,
    "I": _one_or_each(_is_size),
    "J": _one_or_each(_or_none(_is_size)),
    "q": is_integer,
    "n": _is_number,
    "N": _one_or_each(_is_number),
    "b": lambda value: type(value) is bool,
    "d": _is_dtype,
    "v": _is_device,
    "m": lambda value: type(value) is torch.memory_format,
    "l": lambda value: value is torch.strided,
    "0": lambda value: value is None,
    "S": _each(_is_size),
    "x": _is_index,
    "s": _is_text,
    "e": lambda value: type(value) is str and _EQUATION.fullmatch(value) is not None,
    "c": _is_key,
    "C": _each(_is_item),
    "F": lambda value: value is False,
    "V": is_plain,
    "P": lambda value: is_sequence(value) or is_dict(value),
    "K": lambda value: type(value) is str and value in _DEVICES,
    "h": lambda value: _is_weight_name(value) or (is_sequence(value) and all(KINDS["h"](item) for item in value)),
}


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of an operator."""

    name: str
    tests: tuple[Test, ...]
    words: frozenset[str]

    def takes(self, value: Any) -> bool:
        """Whether a value is of one of the argument's kinds."""
        for test in self.tests:
            if test(value):
                return True
        return type(value) is str and value in self.words


@dataclass(frozen=True, slots=True)
class Row:
    """The arguments that an operator takes: by position and by name, and one for all further positional ones."""

    arguments: tuple[Argument, ...]
    by_name: Mapping[str, Argument]
    rest: Argument | None

    def refusal(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
        """The reason why a call does not fit this row, in a few words; None if it fits."""
        arguments = self.arguments
        for index, value in enumerate(args):
            argument = arguments[index] if index < len(arguments) else self.rest
            if argument is None:
                return "one argument too many"
            if not argument.takes(value):
                return f"{show(value)} as its argument {argument.name!r}"
        for name, value in kwargs.items():
            found = self.by_name.get(name)
            if found is None or not found.takes(value):
                return f"{show(value)} as its argument {name!r}"
        return None

    def bound(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name, those of `rest` left out."""
        return {**{argument.name: value for argument, value in zip(self.arguments, args, strict=False)}, **kwargs}


def show(value: Any) -> str:
    """A value in a message: short, and without what a tensor holds."""
    if isinstance(value, torch.Tensor):
        return "a tensor"
    if value is None or isinstance(value, bool | float | str | torch.dtype | torch.device) or is_integer(value):
        text = repr(value)
        return text if len(text) <= 40 else f"{text[:37]}..."
    return "an integer of more than 64 bits" if isinstance(value, int) else f"a {type(value).__name__}"


@cache
def row(text: str) -> Row:
    """Read a row: see the head of this module."""
    arguments: list[Argument] = []
    by_name: dict[str, Argument] = {}
    rest = None
    for part in text.split():
        name, _, kinds = part.partition("=")
        letters, *words = kinds.split("|")
        argument = Argument(name.lstrip("*"), tuple(KINDS[letter] for letter in letters), frozenset(words))
        if name.startswith("*"):
            rest = argument
            continue
        by_name[name] = argument
        if rest is None:
            arguments.append(argument)
    return Row(tuple(arguments), by_name, rest)


def rows(text: str) -> Iterator[tuple[list[str], list[str], str]]:
    """The lines of a table: the places and the names in front, and the row behind them, split at ` : `."""
    for line in filter(None, map(str.strip, text.splitlines())):
        places, names, kinds = (part.strip() for part in f"{line} ".split(" : "))
        yield places.split(), names.split(), kinds
