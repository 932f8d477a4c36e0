"""The vocabulary of attributes, the same for all hosts: ONNX's names and forms.

A host's reader gives each node its attributes in this vocabulary (`hosts/torch/attributes.py`, `hosts/onnx/attributes.py`); rules,
passes and analyses read nothing else. Axes count from 0, except those that are named from the end (`axis` of a layer norm);
a window has one entry an axis; `pads` lists what is put before each axis, then what is put after. An entry of `ends` that is None
means "to the end". What the sizes of inputs and outputs tell already (the sizes of a Reshape, the parts of a Split) is left out, as is
what has no effect in eval mode.

Two names say how a host stores a parameter, not what the operator does: `transB` (0: the weight is (inputs, outputs)), and `broadcast` (the
slopes of a PRelu meet the last axes, not axis 1). Texts and comparisons leave them out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

Attrs = dict[str, Any]
STORAGE = frozenset({"transB", "broadcast"})
"""Attributes that say how a parameter is stored."""
_SPREADABLE = frozenset({"strides", "pads", "dilations", "kernel_shape", "output_padding", "output"})
END = 2**31 - 1
"""From here on the end of a slice is "to the end", as exporters write it."""
_DIGITS = 6
"""Numbers are shown at float32's precision: ONNX stores 1e-5 as 9.9999997e-06."""


def shown(attrs: Mapping[str, Any]) -> Attrs:
    """Attributes as JSON data, as texts print and comparisons read them: sizes that are equal along each axis are one number."""
    found = {name: plain(value) for name, value in attrs.items() if name not in STORAGE}
    return {name: _spread(value) if name in _SPREADABLE else value for name, value in found.items()}


def _spread(value: Any) -> Any:
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


def each(value: Any, axes: int) -> tuple[Any, ...]:
    """One entry for each axis, as one number may stand for all of them."""
    found = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    return found * axes if len(found) == 1 else found[:axes]


def pooling(kind: str, before: Sequence[int], after: Sequence[int]) -> Attrs:
    """Attributes of a pool that is asked for a size: its windows where they are even; `all` where one covers the whole input."""
    if all(size == 1 for size in after):
        return {"kind": kind, "kernel_shape": "all"}
    if all(a % b == 0 for a, b in zip(before, after, strict=True)):
        steps = tuple(a // b for a, b in zip(before, after, strict=True))
        return {"kind": kind, "kernel_shape": steps, "strides": steps, "pads": (0,) * (2 * len(steps))}
    return {"kind": kind, "output": tuple(after)}


def window(kind: str, before: Sequence[int], kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int]) -> Attrs:
    """Attributes of a pool by its windows; one that covers the whole input is written `all`, whatever the example's sizes."""
    if tuple(kernel) == tuple(before) and not any(pads):
        return {"kind": kind, "kernel_shape": "all"}
    return {"kind": kind, "kernel_shape": tuple(kernel), "strides": tuple(strides), "pads": tuple(pads)}


def cuts(found: Sequence[tuple[int, int, int | None, int]], rank: int) -> Attrs:
    """Attributes of a slice from (axis, start, end, step), without what takes nothing away."""
    taken = sorted((axis % rank, start, end, step) for axis, start, end, step in found if (start, end, step) != (0, None, 1))
    columns = tuple(zip(*taken, strict=True)) or ((), (), (), ())
    return dict(zip(("axes", "starts", "ends", "steps"), columns, strict=True))
