"""Files that torch.save wrote, read with no more memory than they have bytes: their zip may inflate, their tensors may repeat, and so may lists."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from irtool.errors import FileError

MOST_VALUES = 1_000_000
"""Values in a checkpoint, counted as often as they are reached: a list of twice the same list, thirty deep, has billions."""
_WEIGHTS_ALONE = "Save the weights alone: torch.save(model.state_dict(), path), or safetensors."
_REMEDY = "Do not trust this file; if it is yours, save the weights alone: torch.save(model.state_dict(), path), or safetensors."


def load_stored(path: Path) -> Any:
    """Read what torch.load reads with `weights_only=True`, on the CPU.

    Raises:
        FileError: it would take more memory than the file has bytes (and 1 MiB, four times over).
        Exception: whatever torch raises on a file that is none of its own.
    """
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        if any("/code/" in entry.filename for entry in entries):
            raise FileError("a TorchScript program, not a torch checkpoint", where=str(path), remedy=_WEIGHTS_ALONE)
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sum(entry.file_size for entry in entries) > 2 * size:
            raise FileError("is packed: torch writes plain files, and these may be of any size", where=str(path), remedy=_REMEDY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about old pickles and sparse tensors: what is wrong with them is found by whoever asked
        found = torch.load(path, map_location="cpu", weights_only=True)
    _Count(path, 4 * (size + 2**20)).add(found)
    return found


class _Count:
    """Values and bytes that may still be found."""

    def __init__(self, path: Path, bytes_: int) -> None:
        self.path, self.values, self.bytes = path, MOST_VALUES, bytes_

    def add(self, found: Any) -> None:
        stack = [found]
        while stack:
            value = stack.pop()
            self.values -= 1
            if isinstance(value, Tensor):
                self.bytes -= value.numel() * value.element_size()
            elif isinstance(value, Mapping):
                stack += [*value.keys(), *value.values()]
            elif isinstance(value, list | tuple | set | frozenset):
                stack += value
            if self.values < len(stack) or self.bytes < 0:
                what = "more bytes of tensors than the file has" if self.bytes < 0 else f"more than {MOST_VALUES:,} values"
                raise FileError(f"holds {what}", where=str(self.path), remedy=_REMEDY)
