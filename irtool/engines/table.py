"""What `irtool quantize` does differently for onnxruntime and for MNN."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from irtool.engines import MnnSession, OnnxSession, Session, export_mnn
from irtool.engines.mnn.int8 import export_mnn_int8
from irtool.engines.mnn.profile import mnn_profile, mnn_times
from irtool.engines.onnxruntime.profile import operator_times
from irtool.engines.onnxruntime.qdq import to_qdq, weights_to_qdq
from irtool.quant import Placement, Scheme, Statistics, make_recipe
from irtool.quant.boundaries import Account, account, mnn_account
from irtool.quant.prepare import prepared


@dataclass(frozen=True)
class Engine:
    """What differs between the two engines.

    Attributes:
        suffix: of its files.
        lowers: whether a scale and a shift becomes a convolution, so that it computes in integers. In MNN it reads float mostly,
            a residual stream, and rounds less and is faster as the batch norm that it is.
        session: opens one.
        convert: makes the float file from the float ONNX file.
        write: writes the int8 file for a prepared model, its statistics, a placement and a scheme; gives the layers that the engine
            could not take in integers.
        lighten: writes a file with integer weights alone from the float ONNX file.
        account: where an int8 file computes in what, from the prepared model, its placement and one image.
        times: where the time of a file goes, from the inputs of one run: milliseconds by kind of operator.
    """

    suffix: str
    lowers: bool
    session: Callable[[Path, int], Session]
    convert: Callable[[Path, Path], object]
    write: Callable[[ModelProto, Mapping[str, Statistics], Placement, Scheme, Path], tuple[str, ...]]
    lighten: Callable[[Path, Path, Scheme], object]
    account: Callable[[Path, ModelProto, Placement, np.ndarray], Account]
    times: Callable[[Path, Sequence[np.ndarray]], dict[str, float]]


def _write_onnx(model: ModelProto, stats: Mapping[str, Statistics], placement: Placement, scheme: Scheme, path: Path) -> tuple[str, ...]:
    onnx.save(to_qdq(model, make_recipe(model, placement, stats, scheme)), str(path))
    return ()


def _write_mnn(model: ModelProto, stats: Mapping[str, Statistics], placement: Placement, scheme: Scheme, path: Path) -> tuple[str, ...]:
    return export_mnn_int8(model, make_recipe(model, placement, stats, scheme), path, bits=scheme.weight_bits).missed


ENGINES = {
    "onnx": Engine(
        ".onnx",
        True,
        OnnxSession,
        shutil.copyfile,
        _write_onnx,
        lambda source, path, scheme: onnx.save(
            weights_to_qdq(prepared(onnx.load(str(source))), scheme.weights, scheme.weight_bits), str(path)
        ),
        lambda path, model, placement, x: account(model, placement),
        lambda path, inputs: operator_times(path, list(inputs)),
    ),
    "mnn": Engine(
        ".mnn",
        False,
        MnnSession,
        export_mnn,
        _write_mnn,
        lambda source, path, scheme: export_mnn(source, path, weight_bits=scheme.weight_bits),
        lambda path, model, placement, x: mnn_account(mnn_profile(path, x)),
        lambda path, inputs: mnn_times(path, inputs[0]),
    ),
}
