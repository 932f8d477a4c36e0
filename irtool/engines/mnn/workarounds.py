"""The file that MNN's converter is given: the model in words that it reads right."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import onnx

from irtool.engines.mnn.rewriting.definitions import inlined
from irtool.engines.mnn.rewriting.rewrite import rewrite


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
