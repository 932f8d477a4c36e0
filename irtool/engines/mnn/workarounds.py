"""The file that MNN's converter is given: the model in words that it reads right."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

import onnx

from irtool.engines.mnn.rewriting.definitions import inlined
from irtool.engines.mnn.rewriting.rewrite import rewrite
from irtool.errors import ExportError

Result = TypeVar("Result")


def converted(model: onnx.ModelProto, source: Path, folder: Path, convert: Callable[[Path], Result]) -> Result:
    """Convert the model in words that MNN reads. Operators that it names as unknown to it are taken apart where ONNX defines them by others.

    Args:
        model: what the file holds; changed.
        source: the file.
        folder: for copies of it.
        convert: converts one file.

    Raises:
        ExportError: `convert` does, and nothing is left to take apart.
    """
    file, tried = worked_around(model, source, folder), set[str]()
    while True:
        try:
            return convert(file)
        except ExportError as error:
            unknown = set(_UNKNOWN.findall(error.what)) - tried
            apart = taken_apart(model, folder, unknown) if unknown else None
            if apart is None:
                raise
            tried |= unknown
            file = apart


_UNKNOWN = re.compile(r"ONNX::(\w+)")
"""An operator of ONNX as MNN's converter names what it does not have."""


def worked_around(model: onnx.ModelProto, source: Path, folder: Path) -> Path:
    """The file to convert: `source`, or a copy of it in `folder` with what MNN misreads in other words; `model` is changed.

    Files with weights beside them are left as they are: a copy in another folder would not find these.
    """
    if _has_weights_beside(model) or not rewrite(model):
        return source
    return _saved(model, folder)


def taken_apart(model: onnx.ModelProto, folder: Path, operators: Collection[str]) -> Path | None:
    """Such a copy in which some operators are written as ONNX defines them by others; None where it defines none of them so."""
    if _has_weights_beside(model) or not inlined(model, operators):
        return None
    rewrite(model)
    return _saved(model, folder)


def _has_weights_beside(model: onnx.ModelProto) -> bool:
    return any(tensor.external_data for tensor in model.graph.initializer)


def _saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "worked_around.onnx"
    onnx.save(model, str(path))
    return path
