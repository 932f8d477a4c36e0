"""Time that a model takes in onnxruntime, by kind of operator."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from irtool.atomic_files import scratch_folder
from irtool.engines.onnxruntime.session import OnnxSession
from irtool.engines.session import check_runs


def operator_times(
    path: str | os.PathLike[str], inputs: Sequence[np.ndarray], *, runs: int = 50, threads: int | None = 1
) -> dict[str, float]:
    """Milliseconds a run by operator type, after onnxruntime's own optimisation; the largest first.

    The profiler itself takes time, so the sum is more than an undisturbed run's.

    Args:
        path: the .onnx file.
        inputs: the arrays of one run.
        runs: runs that count; as many as a tenth of them go before.
        threads: of onnxruntime.

    Raises:
        OptionError: `runs` below 1.
        FileError, BackendError: as `OnnxSession` has them.
    """
    check_runs(runs, "operator_times")
    with scratch_folder() as folder:
        session = OnnxSession(path, threads, profile=folder / "profile")
        warm = max(1, runs // 10)
        for _ in range(warm + runs):
            session.run(*inputs)
        events = json.loads(Path(session.end_profile()).read_text())
    totals: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            totals[event["args"]["op_name"]].append(event["dur"] / 1000)
    share = runs / (warm + runs)
    means = {op: sum(times[int(len(times) * (1 - share)) :]) / runs for op, times in totals.items()}
    return dict(sorted(means.items(), key=lambda entry: -entry[1]))
