"""The file: tensors in safetensors, everything else as one JSON text in its metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from irtool.archive.limits import HEADER_BYTES
from irtool.atomic_files import check_nesting, replacing
from irtool.errors import FileError

VERSION = 1
_KEY = "irtool"
DAMAGED, SAVE_AGAIN = "damaged or altered", "Save it again with irtool.save."
_WRITE_ANEW = "Pass a file that irtool.save wrote, or save it again."


def write(path: str | os.PathLike[str], header: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write an archive, all of it or nothing.

    Raises:
        FileError: the place is not writable, a step in the history is no JSON data, or the format has no name for an element type.
    """
    if "\0" in str(path):
        raise FileError("no file can have a NUL sign in its name", where=repr(str(path)), remedy="Check the path.")
    try:
        text = json.dumps({"version": VERSION, **header}, allow_nan=False, separators=(",", ":"))
        check_nesting(header)
    except (TypeError, ValueError, RecursionError) as error:
        raise FileError(
            f"the graph's history or program is no JSON data ({_first_line(error)})",
            where=str(path),
            remedy="Let passes of your own write plain numbers, texts, lists and dicts into the history.",
        ) from error
    if len(text.encode()) > HEADER_BYTES:
        raise FileError(
            f"the graph's program and history take {len(text):,} signs, and an archive holds up to {HEADER_BYTES:,}",
            where=str(path),
            remedy="Keep less in the history or in metadata=.",
        )
    with replacing(path) as temporary:
        try:
            # One entry: safetensors writes several in an order that changes from run to run, and equal models give equal files.
            content = safetensors.torch.save(tensors, metadata={_KEY: text})
        except (KeyError, ValueError, safetensors.SafetensorError) as error:
            raise FileError(
                f"the weights cannot be written ({_first_line(error)})",
                where=str(path),
                remedy="Convert them to a common type, e.g. float().",
            ) from error
        temporary.write_bytes(content)  # not by safetensors, which tells of a full disk in words of its own


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """All but the weights.

    Raises:
        FileError: the file is missing, truncated, of another format, or of a newer version.
    """
    return _read(path, with_tensors=False)[0]


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors, on the CPU and independent of the file. Raises as `read_header`."""
    return _read(path, with_tensors=True)


def _read(path: str | os.PathLike[str], with_tensors: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    where = str(path)
    if Path(path).is_dir():
        raise FileError("is a folder", where=where, remedy=_WRITE_ANEW)
    try:
        with safetensors.safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            if text is not None and len(text) > HEADER_BYTES:
                raise FileError(
                    f"refused: its header has {len(text):,} signs, and irtool reads up to {HEADER_BYTES:,}", where=where, remedy=_WRITE_ANEW
                )
            # Cloned: what safetensors hands out may be mapped from the file.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()} if with_tensors and text else {}
    except FileNotFoundError as error:
        raise FileError("no such file", where=where, remedy="Check the path.") from error
    except OSError as error:
        raise FileError(f"cannot be read ({error.strerror or error})", where=where, remedy="Check the path and its permissions.") from error
    except safetensors.SafetensorError as error:
        raise FileError(f"truncated, or no safetensors file ({_first_line(error)})", where=where, remedy=_WRITE_ANEW) from error
    if text is None:
        raise FileError(
            "a safetensors file that irtool.save did not write", where=where, remedy="Load its tensors into your model, and trace that."
        )
    try:
        header = json.loads(text)
        check_nesting(header)
        version = header["version"]
        if type(version) is not int or version < 1:
            raise ValueError(version)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FileError("its header is damaged", where=where, remedy=_WRITE_ANEW) from error
    if version > VERSION:
        raise FileError(f"of format version {version}, this irtool reads up to {VERSION}", where=where, remedy="Install a newer irtool.")
    odd = next((name for name, fits in _FIELDS.items() if name not in header or not fits(header[name])), None)
    if odd is not None:
        raise FileError(f"{DAMAGED} ({odd} is missing or of another kind)", where=where, remedy=SAVE_AGAIN)
    return header, tensors


def _is_a(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds)


def _is_history(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(step, dict) and isinstance(step.get("step"), str) for step in value)


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "torch": _is_a(str),
    "tracer": _is_a(str),
    "history": _is_history,
    "inputs": _is_a(dict),
    "tensors": _is_a(dict),
    "training": _is_a(dict),
    "preprocessing": _is_a(dict, type(None)),
    "metadata": _is_a(dict, type(None)),
    "modules": _is_a(dict, type(None)),
    "program": _is_a(dict, type(None)),
    "incomplete": _is_a(str, type(None)),
}
"""Types of the parts of a header: most are only handed on, so that nothing else would notice a wrong one."""


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:120]
