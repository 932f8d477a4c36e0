"""Running a model on calibration images and remembering what each tensor was like."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import numpy as np
import onnx
from onnx import ModelProto

from irtool.atomic_files import scratch_folder
from irtool.engines import OnnxSession
from irtool.errors import DataError
from irtool.quant.statistics import Statistics
from irtool.tensor_defaults import plain_tensors

Told = Callable[[int], None]
"""Called with the number of images done so far."""


def nobody(_done: int) -> None:
    """The listener that does nothing."""


def observed_model(model: ModelProto, tensors: Collection[str]) -> ModelProto:
    """A copy that returns these tensors after its own outputs."""
    copy = ModelProto()
    copy.CopyFrom(model)
    known = {value.name: value for value in (*copy.graph.value_info, *copy.graph.input, *copy.graph.output)}
    returned = {value.name for value in copy.graph.output}
    inputs = {value.name for value in copy.graph.input}
    for name in tensors:
        if name not in returned and name not in inputs:
            kind = known[name].type.tensor_type.elem_type if name in known else onnx.TensorProto.FLOAT
            copy.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
    return copy


@plain_tensors()
def calibrate(
    model: ModelProto,
    tensors: Collection[str],
    batches: Iterable[np.ndarray | tuple[np.ndarray, ...]],
    *,
    threads: int | None = None,
    told: Told = nobody,
) -> dict[str, Statistics]:
    """Measure each tensor over the images, in onnxruntime in float. Memory does not grow with the number of images.

    Args:
        model: a float model.
        tensors: names; inputs may be among them.
        batches: float32 arrays for the input, images along axis 0; of a model with several inputs tuples of arrays, in its order.
        threads: of onnxruntime.
        told: progress.

    Raises:
        DataError: no batches, something that is no series of batches, or values that are not finite.
        BackendError: the images do not fit the model.
    """
    if not isinstance(batches, Iterable):
        raise DataError(
            f"batches are a {type(batches).__name__}", where="calibration", remedy="Give a list or another series of float32 arrays."
        )
    wanted = list(dict.fromkeys(tensors))
    found = {name: Statistics() for name in wanted}
    done = 0
    with scratch_folder() as folder:
        path = folder / "observed.onnx"
        onnx.save(observed_model(model, wanted), str(path))
        session = OnnxSession(path, threads)
        names = [spec.name for spec in session.outputs]
        given = [spec.name for spec in session.inputs]
        for batch in batches:
            arrays = batch if isinstance(batch, tuple) else (batch,)
            values = dict(zip(names, session.run(*arrays), strict=True)) | dict(zip(given, arrays, strict=True))
            for name, stats in found.items():
                stats.update(values[name])
            done += max(len(array) if array.ndim else 1 for array in arrays)
            told(done)
    if not done:
        raise DataError("no images", where="calibration", remedy="Give at least one image; a few hundred are usual.")
    return found
