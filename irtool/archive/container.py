"""The file: tensors in safetensors, everything else as one JSON text in its metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from irtool.errors import FileError
from irtool.files import replacing

VERSION = 1
_KEY = "irtool"
_WRITE_ANEW = "Pass a file that irtool.save wrote, or save it again."


def write(path: str | os.PathLike[str], header: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write an archive, all of it or nothing.

    Raises:
        FileError: the place is not writable, or the format has no name for an element type.
    """
    text = json.dumps({"version": VERSION, **header}, allow_nan=False, separators=(",", ":"))
    with replacing(path) as temporary:
        try:
            # One entry: safetensors writes several in an order that changes from run to run, and equal models give equal files.
            safetensors.torch.save_file(tensors, temporary, metadata={_KEY: text})
        except (KeyError, ValueError, safetensors.SafetensorError) as error:
            raise FileError(
                f"the weights cannot be written ({_first_line(error)})",
                where=str(path),
                remedy="Convert them to a common type, e.g. float().",
            ) from error


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
        version = header["version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FileError("its header is damaged", where=where, remedy=_WRITE_ANEW) from error
    if not isinstance(version, int) or version > VERSION:
        raise FileError(f"of format version {version}, this irtool reads up to {VERSION}", where=where, remedy="Install a newer irtool.")
    return header, tensors


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:120]
