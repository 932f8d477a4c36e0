"""Time that a model takes in OpenVINO, by kind of operator."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from irtool.engines.openvino.session import OpenvinoSession
from irtool.engines.session import check_runs


def openvino_times(
    path: str | os.PathLike[str], inputs: Sequence[np.ndarray], *, runs: int = 20, threads: int | None = 1
) -> dict[str, float]:
    """Milliseconds a run by kind of operator, after OpenVINO's own optimisation, integers and float apart; the largest first.

    Counting takes time, so the sum is more than an undisturbed run's.

    Args:
        path: the .onnx file.
        inputs: the arrays of one run.
        runs: runs that count; as many as a tenth of them go before.
        threads: of OpenVINO.

    Raises:
        OptionError: `runs` below 1.
        FileError, BackendError: as `OpenvinoSession` has them.
    """
    check_runs(runs, "openvino_times")
    session = OpenvinoSession(path, threads, profile=True)
    for _ in range(max(1, runs // 10)):
        session.run(*inputs)
    totals: dict[str, float] = defaultdict(float)
    for _ in range(runs):
        session.run(*inputs)
        for kind, spent in session.times().items():
            totals[kind] += spent / runs
    return dict(sorted(totals.items(), key=lambda entry: -entry[1]))
