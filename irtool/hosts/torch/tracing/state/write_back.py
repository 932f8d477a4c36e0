"""Undo a module's writes into its own tensors while it runs: each is copied when it is first written into."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from irtool.hosts.torch.modules import modules_by_path


@contextmanager
def put_back_writes(module: nn.Module) -> Iterator[None]:
    """Undo what is written into parameters, buffers and plain tensors of a module, whatever view of them is written into."""
    held: dict[int, Tensor] = {}
    for owner in modules_by_path(module).values():
        for slot in (owner._parameters, owner._buffers, owner.__dict__):
            for tensor in slot.values():
                if isinstance(tensor, Tensor) and type(tensor) in (Tensor, nn.Parameter) and (place := _place(tensor)):
                    held.setdefault(place, tensor)
    watch = _Watch(held)
    places = [(tensor, tensor.detach(), place) for place, tensor in held.items()]
    try:
        with watch:
            yield
    finally:
        for tensor, before, place in places:
            if tensor.untyped_storage().data_ptr() != place:  # `weight.data = other`
                tensor.data = before
        for whole, copy in watch.copies.values():
            with torch.inference_mode(whole.is_inference()), torch.no_grad():
                whole.copy_(copy)


def _place(tensor: Tensor) -> int:
    """Return the address of the memory that a tensor lies in; 0 if it has none."""
    known = not nn.parameter.is_lazy(tensor) and tensor.layout is torch.strided and not tensor.is_meta
    return tensor.untyped_storage().data_ptr() if known else 0


_STATISTICS = "batch_norm"
"""In the names of the operators that write into their running statistics, though their schemas do not say so."""


class _Watch(TorchDispatchMode):
    """Copies what is about to be written into, the whole of its memory."""

    def __init__(self, held: dict[int, Tensor]) -> None:
        super().__init__()
        self._held = held
        self._writes: dict[Any, bool] = {}
        self.copies: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in self._writes:
            self._writes[func] = func._schema.is_mutable or _STATISTICS in func.__name__
        if self._writes[func]:
            for tensor in pytree.tree_leaves((args, kwargs)):
                place = _place(tensor) if isinstance(tensor, Tensor) else 0
                if place in self._held and place not in self.copies:
                    storage = self._held[place].detach()
                    whole = storage.as_strided((storage.untyped_storage().nbytes() // storage.itemsize,), (1,), 0)
                    self.copies[place] = (whole, whole.clone())
        return func(*args, **(kwargs or {}))
