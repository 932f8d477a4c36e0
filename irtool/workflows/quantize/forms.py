"""The forms in which a model's file is tried, what each costs, and which is recommended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from irtool.engines import latency_pairs
from irtool.engines.engine import Engine, Feeds, Int8
from irtool.engines.latency import NOISE, is_known
from irtool.engines.speed.stopwatch import clock_of, is_disturbed, load
from irtool.quant import Scheme

LATENCY_SECONDS = 10.0
GOALS: Mapping[str, str] = {"size": "the fewest bytes", "speed": "the least time"}


@dataclass(frozen=True)
class Form:
    """One file of a model.

    Attributes:
        name: `float`, `half` (weights as half floats), `weights8` or `weights4` (weights alone as integers) or `int8`: its stem.
        bytes: of the file.
        accuracy: on the images that chose nothing, as a share.
        drop, error: how much less than the float file's that is, and the standard error of it; None where it cannot be told.
        expected: how much it is expected to lose, from the images that choose, and one standard error more.
        latency_ms: of one run at batch 1, processor time of one thread, else wall time: of the float file the median, of others
            that times the median ratio of paired runs (`PairedLatency.milliseconds`).
        ratio: of paired latencies, to the float file's; None where the machine was too busy to tell.
    """

    name: str
    bytes: int
    accuracy: float
    drop: float
    error: float | None
    expected: float
    latency_ms: float
    ratio: float | None


@dataclass(frozen=True)
class Times:
    """Latencies of files against the first, in ms (`PairedLatency.milliseconds`), and ratios, None where they are not measurable."""

    latency_ms: Mapping[str, float]
    ratios: Mapping[str, float | None]


def _write_half(int8: Int8, source: Path, path: Path, _scheme: Scheme, _feeds: Feeds) -> None:
    int8.write_half(source, path)


def _write_weights(int8: Int8, source: Path, path: Path, scheme: Scheme, feeds: Feeds, *, bits: int) -> None:
    """Write weights of so many bits, whatever the scheme says: nothing overflows in float."""
    int8.write_weights(source, path, Scheme(weights=scheme.weights, weight_bits=bits), feeds)


def light_forms(engine: Engine) -> dict[str, Callable[[Path, Path, Scheme, Feeds], None]]:
    """The forms that are stored smaller and computed in float, each with what writes it from the float ONNX file."""
    bits = (8, 4) if engine.int8.packs_bits else (8,)
    weights = {f"weights{each}": partial(_write_weights, engine.int8, bits=each) for each in bits}
    return {"half": partial(_write_half, engine.int8), **weights}


WORDS: Mapping[str, str] = {"float": "float", "half": "half-float weights", "weights8": "8-bit weights alone", "weights4": "4-bit weights alone",
                             "int8": "int8"}  # fmt: skip


def timed(engine: Engine, paths: Mapping[str, Path], inputs: Sequence[np.ndarray], runs: int, threads: int) -> Times:
    """Time files against the first of them, in pairs, by the clock that suits the number of threads (`clock_of`)."""
    sessions = [engine.session(path, threads) for path in paths.values()]
    found = latency_pairs(sessions, inputs, runs=runs, seconds=LATENCY_SECONDS, clock=clock_of(threads))
    shown = dict(zip(paths, found.milliseconds, strict=True))
    rows, disturbed = zip(paths, found.ratios, found.intervals, strict=True), is_disturbed(threads)
    return Times(shown, {name: ratio if is_known(ratio, interval) and not disturbed else None for name, ratio, interval in rows})


def busy(threads: int) -> str:
    """A warning where more is waiting for processors than there are; empty if not, or if the system does not tell."""
    if (found := load()) <= 1:
        return ""
    what = "processor times in pairs suffer little" if threads == 1 else "times of several threads mean little"
    return f"the machine is busy: {found:.1f} programs want each core; {what}"


def recommended(forms: Sequence[Form], goal: str, allowed: float) -> Form:
    """The form to use: of those that are expected to lose little enough the one with the fewest bytes, or the least time.

    Args:
        forms: the float form first, which loses nothing.
        goal: a key of `GOALS`. Where times are not known, bytes decide.
        allowed: how much may be lost, as a share.
    """
    fine = [form for form in forms if form is forms[0] or form.expected <= allowed]
    if goal == "size" or any(form.ratio is None for form in fine):
        return min(fine, key=lambda form: form.bytes)
    least = min(form.ratio for form in fine if form.ratio is not None)
    return min((form for form in fine if form.ratio is not None and form.ratio <= least * (1 + NOISE)), key=lambda form: form.bytes)
