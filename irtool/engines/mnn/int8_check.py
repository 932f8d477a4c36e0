"""Whether an int8 file for MNN computes what its recipe promises."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from irtool.atomic_files import scratch_folder
from irtool.engines import MnnSession, OnnxSession
from irtool.engines.agreement import sample_inputs
from irtool.engines.onnxruntime.prepare import OLDEST
from irtool.engines.onnxruntime.qdq import to_qdq
from irtool.errors import BackendError, ExportError
from irtool.hosts.onnx.files.file import opset_of
from irtool.quant.scales import Recipe

LEAST = 0.5
"""An error of half the signal: less may be a poor recipe, which is for an accuracy to judge."""
TIMES = 4.0
"""MNN rounds where the simulation does not (its means round down, say), which doubled the error in the nets measured."""


def require_promised(model: ModelProto, recipe: Recipe, path: str | os.PathLike[str]) -> None:
    """Compare a file in MNN with the float model, on noise of the input's range, by what the recipe does in onnxruntime.

    Nothing is checked where nothing is promised: onnxruntime has no simulation below operator set 13, and made-up sizes need not
    suit a model with free ones.

    Args:
        model: the float model that the recipe was made for.
        recipe: all scales.
        path: the .mnn file.

    Raises:
        ExportError: the file's error is over half the signal and over four times the simulation's.
    """
    if (opset_of(model) or 0) < OLDEST:
        return
    with scratch_folder() as folder:
        exact, simulation = _session(model, folder / "float.onnx"), _session(to_qdq(model, recipe), folder / "int8.onnx")
        try:
            arrays = [
                _spread(array, recipe, spec.name) for spec, array in zip(exact.inputs, sample_inputs(exact.inputs, batch=4), strict=True)
            ]
            expected, simulated, result = exact.run(*arrays), simulation.run(*arrays), MnnSession(path, 1).run(*arrays)
        except BackendError:
            return
    error, promised = _error(result, expected), _error(simulated, expected)
    if error > max(LEAST, TIMES * promised):
        raise ExportError(
            f"in MNN the int8 model is off by {100 * error:.0f} % of its signal, with the same scales in onnxruntime by {100 * promised:.2g} %",
            where="MNN",
            remedy="MNN computes an operator of it wrong in integers: leave layers beside it in float (floating= of place), and report the model.",
        )


def _session(model: ModelProto, file: Path) -> OnnxSession:
    onnx.save(model, str(file))
    return OnnxSession(file)


def _spread(array: np.ndarray, recipe: Recipe, name: str) -> np.ndarray:
    """Standard normal noise so that three deviations fill the tensor's integers."""
    params = recipe.activations.get(name)
    return array if params is None else (array * (params.range[1] / 3)).astype(array.dtype)


def _error(results: Sequence[np.ndarray], references: Sequence[np.ndarray]) -> float:
    """The largest error of an output, as a share of the output, both as roots of summed squares; 0 for an output of zeros."""
    shares = [0.0]
    for result, reference in zip(results, references, strict=True):
        signal = float(np.linalg.norm(reference.astype(np.float64)))
        shares.append(float(np.linalg.norm(result.astype(np.float64) - reference)) / signal if signal else 0.0)
    return max(shares)
