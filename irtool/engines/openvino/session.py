"""OpenVINO as an engine."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from irtool.engines.quiet import captured
from irtool.engines.session import TensorSpec, checked, model_file, run_failed, thread_count
from irtool.errors import BackendError
from irtool.extras import EXTRAS
from irtool.hosts.onnx.files.file import check_bounds

_TELEMETRY = "openvino_telemetry"


class OpenvinoSession:
    """An ONNX file in OpenVINO, on the CPU, in float32 or, where the file has integers, in integers.

    OpenVINO by itself computes in bfloat16 on processors that have it, which is faster and right to 2 or 3 digits; here float32 is
    asked for, so that results can be compared.

    Args:
        path: the .onnx file; weights in a file beside it are found.
        threads: threads; all cores if None.
        value: the name of a value inside that `run` returns instead of the outputs.
        profile: measure each operator, for `times`.

    Raises:
        FileError: missing, empty, or asking for more than any model does.
        BackendError: OpenVINO is absent, or refuses the model; from `run`: arrays that do not fit, or a failure inside.
    """

    engine = "openvino"

    def __init__(
        self, path: str | os.PathLike[str], threads: int | None = None, *, value: str | None = None, profile: bool = False
    ) -> None:
        self.path = model_file(path, ".onnx")
        check_bounds(self.path)
        core = openvino().Core()
        options = {"INFERENCE_NUM_THREADS": thread_count(threads), "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        with captured():
            try:
                model = core.read_model(str(self.path))
                results = list(model.outputs) if value is None else model.add_outputs(value)
                names = [_name(port, number, "output") for number, port in enumerate(results)]
                compiled = core.compile_model(model, "CPU", options | ({"PERF_COUNT": True} if profile else {}))
            except (RuntimeError, TypeError) as error:
                raise BackendError(
                    f"OpenVINO refuses the model: {_reason(error)}",
                    where=str(self.path),
                    remedy="Run onnx.checker on the file; export it again with another opset.",
                ) from error
        self._places = list(range(len(compiled.outputs))) if value is None else [len(compiled.outputs) - 1]
        self._request = compiled.create_infer_request()
        self._inputs = tuple(_spec(port, number, "input") for number, port in enumerate(compiled.inputs))
        outputs = (compiled.outputs[place] for place in self._places)
        self._outputs = tuple(TensorSpec(name, *_kind(port)) for name, port in zip(names, outputs, strict=True))

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    def run(self, *arrays: np.ndarray) -> list[np.ndarray]:
        """One array per output, copied out of OpenVINO's memory."""
        fit = checked(self.engine, self._inputs, arrays)
        try:
            self._request.infer(dict(enumerate(fit)), share_inputs=True)
        except RuntimeError as error:
            raise run_failed(_reason(error), self.path) from error
        return [np.array(self._request.get_output_tensor(place).data) for place in self._places]

    def times(self) -> Mapping[str, float]:
        """Milliseconds of the last run by kind of operator and of its arithmetic; the session must have been opened to profile."""
        totals: dict[str, float] = {}
        for operator in self._request.get_profiling_info():
            kind = f"{operator.node_type} in int8" if operator.exec_type.endswith(("_I8", "_U8")) else operator.node_type
            totals[kind] = totals.get(kind, 0.0) + operator.real_time.total_seconds() * 1e3
        return totals


def openvino() -> Any:
    """The package, or a BackendError that says how to get it."""
    try:
        with _untold():
            return importlib.import_module("openvino")  # importing irtool must not need it
    except ImportError as error:
        raise BackendError("OpenVINO is not installed", remedy=f"{EXTRAS['openvino'].command}.") from error


@contextmanager
def _untold() -> Iterator[None]:
    """A block in which OpenVINO's telemetry seems absent.

    Where it is installed, importing OpenVINO starts a process that reports the import to a server of its makers'. Nobody who uses
    irtool has asked for that. OpenVINO has a stand-in that does nothing, and takes it where the package cannot be imported.
    """
    if "openvino" in sys.modules:
        yield
        return
    held = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == _TELEMETRY}
    for name in held:
        del sys.modules[name]
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # how Python marks what cannot be imported
    try:
        yield
    finally:
        del sys.modules[_TELEMETRY]
        sys.modules.update(held)


def _name(port: Any, number: int, what: str) -> str:
    names = sorted(port.get_names())
    return names[0] if names else f"{what}{number}"


def _spec(port: Any, number: int, what: str) -> TensorSpec:
    return TensorSpec(_name(port, number, what), *_kind(port))


def _kind(port: Any) -> tuple[tuple[int | None, ...] | None, str]:
    """Shape and element type; sizes that are not known are None."""
    shape = port.get_partial_shape()
    sizes = None if shape.rank.is_dynamic else tuple(size.get_length() if size.is_static else None for size in shape)
    return sizes, str(np.dtype(port.get_element_type().to_dtype()))


def _reason(error: Exception) -> str:
    """OpenVINO's message without the places in its source, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not re.search(r"\.(?:cpp|hpp|h):\d+|^(?:Exception|Check) ", line)] or lines
    return " ".join(said)[:300]
