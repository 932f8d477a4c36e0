"""onnxruntime as an engine."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from irtool.engines.quiet import captured
from irtool.engines.session import TensorSpec, checked, model_file, run_failed, thread_count
from irtool.errors import BackendError, FileError
from irtool.hosts.onnx.files.file import check_bounds
from irtool.hosts.onnx.running.interpreter import showing

# onnxruntime's type names that are not numpy's.
_DTYPES = {"float": "float32", "double": "float64"}
# What onnxruntime says when it is the files that are wrong, as against a model that it will not run: what to say instead.
_FILE_ERRORS = (
    (
        re.compile(r"protobuf parsing failed|InvalidProtobuf|INVALID_PROTOBUF|does not have a graph|ModelProto", re.IGNORECASE),
        "not an ONNX model, or a truncated one",
        "Export it again, or give the path of an .onnx file.",
    ),
    (
        re.compile(r"External data|external initializer", re.IGNORECASE),
        "the file with its weights is missing or does not fit",
        "Keep the .data file beside the .onnx file, under the name it was written with.",
    ),
)


class OnnxSession:
    """An ONNX file in onnxruntime, on the CPU.

    Args:
        path: the .onnx file; weights in a file beside it are found.
        threads: threads per operator; all cores if None.
        profile: the beginning of a file name to profile under; see `end_profile`.
        values: what `run` returns, by name, instead of the outputs: any values inside.

    Raises:
        FileError: missing, empty, truncated, not ONNX, or asking for more than any model does.
        BackendError: onnxruntime is absent, or refuses the model; from `run`: arrays that do not fit, or a failure inside.
    """

    engine = "onnxruntime"

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None, *, profile: Path | None = None,
                 values: Sequence[str] = ()) -> None:  # fmt: skip
        file = model_file(path, ".onnx")
        check_bounds(file)
        ort = onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = thread_count(threads)
        options.log_severity_level = 4  # the exception says it; the log would say it again on the screen
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        try:
            with captured(), showing(file, values) as source:
                self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base class below Exception
            raise _load_error(error, str(file)) from error
        self.path = file
        self._inputs = tuple(_spec(value) for value in self._session.get_inputs())
        self._outputs = tuple(_spec(value) for value in self._session.get_outputs() if not values or value.name in values)
        self._names = list(values) or None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    def run(self, *arrays: np.ndarray) -> list[np.ndarray]:
        """One array per output."""
        feed = dict(zip((spec.name for spec in self._inputs), checked(self.engine, self._inputs, arrays), strict=True))
        try:
            return [np.asarray(output) for output in self._session.run(self._names, feed)]
        except Exception as error:  # as above
            raise run_failed(_reason(error), self.path) from error

    def end_profile(self) -> str:
        """Stop profiling; the path of the JSON file with onnxruntime's events."""
        return str(self._session.end_profiling())


def onnxruntime() -> Any:
    """The package, or a BackendError that says how to get it."""
    try:
        return importlib.import_module("onnxruntime")  # importing irtool must not need it
    except ImportError as error:
        raise BackendError("onnxruntime is not installed", remedy="pip install onnxruntime") from error


def _load_error(error: Exception, where: str) -> BackendError | FileError:
    for pattern, what, remedy in _FILE_ERRORS:
        if pattern.search(str(error)):
            return FileError(what, where=where, remedy=remedy)
    return BackendError(
        f"onnxruntime refuses the model: {_reason(error)}",
        where=where,
        remedy="Run onnx.checker on the file; export it again with another opset.",
    )


def _reason(error: Exception) -> str:
    """onnxruntime's message without its code prefix and without its own source paths, in one line."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", " ".join(str(error).split()))
    return re.sub(r"/\S+/onnxruntime/\S+\.(?:cc|h):\d+ ", "", text)[:300]


def _spec(value: Any) -> TensorSpec:
    kind = re.sub(r"^tensor\((.*)\)$", r"\1", value.type)
    shape = None if value.shape is None else tuple(size if isinstance(size, int) and size >= 0 else None for size in value.shape)
    return TensorSpec(value.name, shape, _DTYPES.get(kind, kind))
