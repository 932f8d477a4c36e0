"""MNN as an engine."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from irtool.engines.mnn.process import in_child, meaning
from irtool.engines.quiet import captured
from irtool.engines.session import TensorSpec, checked, model_file, run_failed, thread_count
from irtool.errors import BackendError, FileError
from irtool.extras import EXTRAS


class MnnSession:
    """An .mnn file in MNN, on the CPU.

    MNN plans again for every new shape, so axis 0 of each input is free, whatever batch the model was exported with. (A
    file does not say whether its batch was dynamic: the converter writes 1 for a symbolic one.)

    Args:
        path: the .mnn file.
        threads: threads; all cores if None.
        inputs: names of the inputs to take, where `outputs` need no others.
        outputs: names of tensors to return in place of the model's outputs, to look inside; what the converter fused has none.
        exact: let Winograd convolutions use small tiles, which round to 1e-6 of the largest output and not to 1e-3, and take up to 1.6 times
            the time. Programs that do not set `WINOGRAD_MEMORY_LEVEL` compute as without.
        probe: first load and run the file in another process, which takes about 0.3 s. MNN refuses truncated and foreign files by
            itself; a file with a few damaged bytes can end the process. Worth it for files from elsewhere.

    Raises:
        FileError: missing, empty, truncated or not MNN; with `probe`, also damaged.
        BackendError: MNN is absent; from `run`: arrays that do not fit, or a failure inside.
    """

    engine = "mnn"

    def __init__(
        self, path: str | os.PathLike[str], threads: int | None = None, *, inputs: Sequence[str] | None = None,
        outputs: Sequence[str] | None = None, exact: bool = False, probe: bool = False,
    ) -> None:  # fmt: skip
        self.path = model_file(path, ".mnn")
        count = thread_count(threads)
        self._mnn = mnn_module()
        if probe:
            _probe(self.path)
        # With both ends named, MNN loads what lies between alone.
        part = (list(inputs), list(outputs)) if inputs is not None and outputs is not None else ([], [])
        info = _load(self._mnn, str(self.path), *part, count, exact).get_info()
        self._output_names = list(info["outputNames"] if outputs is None else outputs)
        held_inputs = {
            name: held for name, held in zip(info["inputNames"], info["inputs"], strict=True) if inputs is None or name in inputs
        }
        self._module = _load(self._mnn, str(self.path), list(held_inputs), self._output_names, count, exact)
        self._formats = [held.data_format for held in held_inputs.values()]
        self._kinds = [held.dtype for held in held_inputs.values()]
        self._inputs = tuple(TensorSpec(name, _free_batch(held.shape), self._dtype(held.dtype)) for name, held in held_inputs.items())
        self._outputs: tuple[TensorSpec, ...] | None = None
        self._planned: set[tuple[tuple[int, ...], ...]] = set()

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """An .mnn file does not hold output shapes: they are known by running once, on zeros.

        The rank is not known where an input has a free axis beside the batch.
        """
        if self._outputs is None:
            shapes = [spec.shape or () for spec in self._inputs]
            if any(None in shape[1:] for shape in shapes):
                self._outputs = tuple(TensorSpec(name, None, "float32") for name in self._output_names)
            else:
                zeros = [
                    np.zeros([1 if n is None else n for n in shape], spec.dtype) for spec, shape in zip(self._inputs, shapes, strict=True)
                ]
                results = zip(self._output_names, self.run(*zeros), strict=True)
                self._outputs = tuple(TensorSpec(name, _free_batch(list(array.shape)), str(array.dtype)) for name, array in results)
        return self._outputs

    def run(self, *arrays: np.ndarray) -> list[np.ndarray]:
        """One array per output, in NCHW order, copied out of MNN's memory. Integers of 64 bits that 32 hold may be given as they are."""
        fit = checked(self.engine, self._inputs, _narrowed(arrays, self._inputs))
        shapes = tuple(array.shape for array in fit)
        if shapes in self._planned:
            return self._forward(fit)
        # MNN plans for new shapes, and prints what is wrong with them from C++. Later runs are not slowed by listening.
        with captured() as said:
            results, failure = None, ""
            try:
                results = self._forward(fit)
            except (RuntimeError, ValueError, SystemError, TypeError) as error:
                failure = str(error)
        if results is None:
            raise run_failed(f"{failure} ({'; '.join(said.lines[:2])})" if said.lines else failure, self.path)
        self._planned.add(shapes)
        return results

    def _forward(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        expr, variables = self._mnn.expr, []
        for array, layout, kind in zip(arrays, self._formats, self._kinds, strict=True):
            variable = expr.placeholder(list(array.shape), layout, kind)
            variable.write(array)
            variables.append(variable)
        results = self._module.onForward(variables)
        if len(results) != len(self._output_names):
            raise RuntimeError(f"{len(results)} of {len(self._output_names)} outputs came back")
        return [self._array(result) for result in results]

    def _array(self, result: Any) -> np.ndarray:
        expr = self._mnn.expr
        if result.data_format == expr.data_format.NC4HW4:  # MNN's blocked layout
            result = expr.convert(result, expr.data_format.NCHW)
        return np.array(result.read()).reshape(result.shape)

    def _dtype(self, kind: Any) -> str:
        expr = self._mnn.expr
        names = {expr.dtype.float: "float32", expr.dtype.int: "int32", expr.dtype.double: "float64", expr.dtype.uint8: "uint8"}
        return names.get(kind, str(kind))


def mnn_module() -> Any:
    """MNN, imported without the line that it prints. Its `tools` package is left alone: importing that installs software."""
    try:
        with captured():
            return importlib.import_module("MNN")
    except ImportError as error:
        raise BackendError("MNN is not installed", remedy=f"{EXTRAS['MNN'].command}.") from error


def _probe(path: Path, timeout: float = 600.0) -> None:
    died, said = in_child(["probe", str(path.absolute())], path.absolute().parent, timeout)
    if died:
        raise FileError(
            f"MNN {died} on this file: {meaning(said)}", where=str(path), remedy="It is damaged: export it again with export_mnn."
        )


_WINOGRAD_MEMORY_LEVEL, _SMALL_TILES = 3, 1
"""MNN's hint by its number in `HintMode` of its public header, and the level that rounds least at the least cost."""


def _load(mnn: Any, path: str, inputs: list[str], outputs: list[str], threads: int, exact: bool) -> Any:
    with captured() as said:
        try:
            # Only a runtime of its own has the asked number of threads; the default one has four, which wait by spinning.
            runtime = mnn.nn.create_runtime_manager(({"numThread": threads},))
            if exact:
                runtime.set_hint(_WINOGRAD_MEMORY_LEVEL, _SMALL_TILES)
            module = mnn.nn.load_module_from_file(path, inputs, outputs, runtime_manager=runtime)
        except (RuntimeError, SystemError, ValueError):
            module = None
    if module is None:
        detail = f" ({said.lines[-1]})" if said.lines else ""
        raise FileError(f"not an MNN model, or a truncated one{detail}", where=path, remedy="Export it again with export_mnn.")
    return module


def _narrowed(arrays: Sequence[Any], specs: Sequence[TensorSpec]) -> list[Any]:
    """MNN has no integers of 64 bits: its converter makes inputs of 32 of them. What does not fit is left for the check."""
    if len(arrays) != len(specs):
        return list(arrays)
    return [array.astype(np.int32) if spec.dtype == "int32" and _fits(array) else array for array, spec in zip(arrays, specs, strict=True)]


def _fits(array: Any) -> bool:
    """Whether it is an array of 64-bit integers that 32 bits hold."""
    if not isinstance(array, np.ndarray) or array.dtype != np.int64:
        return False
    return not array.size or bool(array.max() < 2**31 and array.min() >= -(2**31))


def _free_batch(shape: list[int]) -> tuple[int | None, ...]:
    return tuple(None if axis == 0 or size < 0 else size for axis, size in enumerate(shape))
