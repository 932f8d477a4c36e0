"""Running .onnx files and comparing what comes out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

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
