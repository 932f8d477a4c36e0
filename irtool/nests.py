"""Tensors in nests: tuples, lists, dicts and dataclasses, as models take and return them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree


def map_tensors(structure: Any, function: Callable[[torch.Tensor], Any]) -> Any:
    """Apply `function` to every tensor in a nest of tuples, lists, dicts and dataclasses known to torch's pytree."""
    if isinstance(structure, torch.Tensor):
        return function(structure)
    return pytree.tree_map(lambda leaf: function(leaf) if isinstance(leaf, torch.Tensor) else leaf, structure)


def look_into(example: Any) -> None:
    """Let torch's pytree see the fields of a dataclass that nobody registered with it, as it sees those of a tuple."""
    if dataclasses.is_dataclass(example) and not isinstance(example, type) and type(example) not in pytree.SUPPORTED_NODES:
        pytree.register_dataclass(type(example))


def cast(structure: Any, dtype: torch.dtype) -> Any:
    """Return the nest with its floating tensors in `dtype`."""
    return map_tensors(structure, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


def doubled(structure: Any) -> Any:
    """Return the nest with its floating tensors in float64."""
    return cast(structure, torch.float64)


def tensors_in(structure: Any) -> list[torch.Tensor]:
    """The tensors of a nest, in order."""
    return [leaf for leaf in pytree.tree_leaves(structure) if isinstance(leaf, torch.Tensor)]


def floats_in(structure: Any) -> list[torch.Tensor]:
    """The floating tensors of a nest, in order."""
    return [tensor for tensor in tensors_in(structure) if tensor.is_floating_point()]
