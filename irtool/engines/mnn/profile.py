"""Operators that MNN runs of a model, after its own planning: in integers or in float, and their time."""

from __future__ import annotations

import os
import re
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from irtool.engines.mnn.session import mnn_module
from irtool.engines.quiet import captured
from irtool.engines.session import check_runs, model_file, thread_count
from irtool.errors import BackendError

INTEGER = "DT_INT8"
"""Mark of MNN for an operator that computes in integers."""


@dataclass(frozen=True)
class MnnRun:
    """One operator as MNN runs it.

    Attributes:
        kind: MNN's name of the operator. Those that MNN adds are `FloatToInt8`, `Int8ToFloat` and `Raster` (a change of layout).
        name: of the operator, or for an added one of the operator that it was added for.
        integer: whether it gives 8-bit integers.
        ms: the median time.
    """

    kind: str
    name: str
    integer: bool
    ms: float


def mnn_profile(path: str | os.PathLike[str], x: np.ndarray, *, runs: int = 20, threads: int | None = 1) -> tuple[MnnRun, ...]:
    """The operators of an .mnn file with one float input, in the order in which MNN runs them.

    Asking takes time, so the sum is more than an undisturbed run's.

    Args:
        path: the .mnn file.
        x: float32, the input of one run.
        runs: timed runs; as many as a tenth of them go before.
        threads: of MNN.

    Raises:
        OptionError: `runs` below 1.
        FileError: no such file.
        BackendError: MNN is absent, or cannot run the file on such an input.
    """
    check_runs(runs, "mnn_profile")
    file, mnn = model_file(path, ".mnn"), mnn_module()
    found, times, failure = list[tuple[str, str, bool]](), np.zeros((0, 0)), ""
    with captured() as said:
        try:
            net = mnn.Interpreter(str(file))
            session = net.createSession({"numThread": thread_count(threads)})
            given = net.getSessionInput(session)
            net.resizeTensor(given, tuple(x.shape))
            net.resizeSession(session)
            values = np.ascontiguousarray(x, np.float32)
            given.copyFrom(mnn.Tensor(tuple(x.shape), mnn.Halide_Type_Float, values, mnn.Tensor_DimensionType_Caffe))
            found, times = _timed(net, session, max(1, runs // 10), runs)
        except Exception as error:  # what MNN raises has no other base class
            failure = str(error)
    if not found:
        reason = next(iter(said.lines), failure or "it says nothing")
        raise BackendError(
            f"MNN ran no operator ({reason})", where=str(file), remedy="Check with MnnSession that it runs on such an input."
        )
    medians = np.median(times, axis=0)
    return tuple(MnnRun(*operator, float(ms)) for operator, ms in zip(found, medians, strict=True))


def mnn_times(path: str | os.PathLike[str], x: np.ndarray, *, runs: int = 20, threads: int | None = 1) -> dict[str, float]:
    """Milliseconds a run by kind of operator, integers and float apart; the largest first. Takes and raises what `mnn_profile` does."""
    totals: dict[str, float] = defaultdict(float)
    for run in mnn_profile(path, x, runs=runs, threads=threads):
        totals[f"{run.kind} in int8" if run.integer and run.kind != "FloatToInt8" else run.kind] += run.ms
    return dict(sorted(totals.items(), key=lambda entry: -entry[1]))


def _timed(net: Any, session: Any, warm: int, runs: int) -> tuple[list[tuple[str, str, bool]], np.ndarray]:
    """The operators, and the milliseconds of each in each run."""
    found: list[tuple[str, str, bool]] = []
    ends: list[float] = []

    def begin(_tensors: Any, _info: Any) -> bool:
        ends.append(time.perf_counter())
        return True

    def note(_tensors: Any, info: Any) -> bool:
        found.append(_described(info.getType(), info.getName()))
        return True

    def end(_tensors: Any, _info: Any) -> bool:
        ends[-1] = (time.perf_counter() - ends[-1]) * 1e3
        return True

    net.runSessionWithCallBackInfo(session, lambda tensors, info: True, note)
    rows = []
    for _ in range(warm + runs):
        ends.clear()
        net.runSessionWithCallBackInfo(session, begin, end)
        rows.append(list(ends))
    return found, np.array(rows[warm:])


def _described(kind: str, name: str) -> tuple[str, str, bool]:
    bare = kind.split("[")[0].strip()
    return bare, re.sub(r"_raster_\d+$", "", name), INTEGER in kind
