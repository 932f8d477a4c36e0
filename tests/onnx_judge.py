"""Running .onnx files and comparing what comes out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

import irtool
from irtool.hosts.onnx.files.load import from_model

FILES = Path(__file__).parents[2] / "shared" / "data" / "onnx"


def in_onnxruntime(path: Path | bytes, *arrays: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path if isinstance(path, bytes) else str(path), providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip([i.name for i in session.get_inputs()], arrays, strict=True)))


def real(name: str) -> Path:
    path = FILES / f"{name}.onnx"
    if not path.exists():
        pytest.skip("../shared/data/onnx is not on this machine")
    return path


def relative(expected: np.ndarray, got: np.ndarray) -> float:
    assert expected.shape == got.shape
    return float(np.abs(expected - got).max() / max(np.abs(expected).max(), 1e-30))


def zeroed_original(model: onnx.ModelProto, plan: irtool.Plan, *shape: int) -> onnx.ModelProto:
    """A copy of a model with zeros for every weight that slicing takes away.

    Which these are is read off the sliced weights themselves: of a model whose weights hold the numbers of their entries.
    """
    graph, numbered, zeroed = from_model(model, [shape]), onnx.ModelProto(), onnx.ModelProto()
    numbered.CopyFrom(model)
    zeroed.CopyFrom(model)
    sliced = irtool.prune(graph, plan, "drop").params
    olds = {name: value.shape for name, value in graph.params.items() if value.dtype is not None and value.dtype.is_floating_point}
    changed = {name for name, value in sliced.items() if name in olds and value.shape != olds[name]}
    for tensor in numbered.graph.initializer:
        if tensor.name in changed:
            numbers = np.arange(np.prod(tensor.dims), dtype=np.float32).reshape(tensor.dims)
            tensor.CopyFrom(numpy_helper.from_array(numbers, tensor.name))
    kept = irtool.prune(from_model(numbered, [shape]), irtool.Plan.from_dict(plan.to_dict()), "drop").params
    for tensor in zeroed.graph.initializer:
        if tensor.name in changed:
            stays = np.zeros(int(np.prod(tensor.dims)), np.float32)
            stays[np.asarray(kept[tensor.name].data).reshape(-1).astype(int)] = 1
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * stays.reshape(tensor.dims), tensor.name))
    return zeroed
