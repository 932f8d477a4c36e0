"""ncnn's record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from irtool.engines.engine import Engine
from irtool.engines.ncnn.export import TOLERANCE, export_ncnn
from irtool.engines.ncnn.session import NcnnSession, probe


def ncnn_times(path: Path, arrays: Sequence[np.ndarray], runs: int = 20) -> dict[str, float]:
    """Milliseconds of a sample by kind of layer, one thread, the median of some runs; the largest first."""
    session = NcnnSession(path, 1)
    session.times(arrays)
    rows = [session.times(arrays) for _ in range(runs)]
    found = {kind: float(np.median([row[kind] for row in rows])) for kind in rows[0]}
    return dict(sorted(found.items(), key=lambda entry: -entry[1]))


ENGINE = Engine(
    name="ncnn",
    title="ncnn",
    package="ncnn",
    module="ncnn",
    suffix=".param",
    tolerance=TOLERANCE,
    session=NcnnSession,
    convert=lambda onnx, path, verify: export_ncnn(onnx, path, verify=verify),
    exact=lambda path: NcnnSession(path, exact=True),
    inside=None,  # pnnx names what lies inside anew
    between=None,
    probe=probe,
    times=ncnn_times,
    integers=None,  # the wheel has neither ncnn2table nor ncnn2int8
    companion=".bin",
)
