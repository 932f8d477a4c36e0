"""Timing samples in an engine, with what was timed before kept in a file."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import prod
from pathlib import Path

import numpy as np
import onnx

from irtool.atomic_files import parse_json, read_text, replacing, scratch_folder
from irtool.engines.cpu import processor
from irtool.engines.engine import Engine
from irtool.engines.session import Session, cores
from irtool.engines.speed.samples import Sample, model_of
from irtool.engines.table import engine as find_engine
from irtool.errors import IrtoolError
from irtool.progress import Progress, Status, silent

FORMAT = 1
LARGEST_CACHE = 2**24
_LONGEST, _MOST_MS = 300, 1e6
_SECONDS, _RUNS = 0.012, 5
_TOGETHER = 2**20
"""Entries of weights in one file, for engines whose converters take long to start: MNN's takes a third of a second."""


class Stopwatch:
    """Times of samples on this machine, in one engine.

    Args:
        engine: a key of `irtool.engines.table.ENGINES`.
        threads: of the engine.
        folder: where times are kept: a file for each engine, version, number of threads and processor. By default `layer-times` below
            `$XDG_CACHE_HOME/irtool` (or `~/.cache/irtool`). Times are not kept where it cannot be written.
        progress: told about the samples that are timed.

    Raises:
        OptionError: an engine that does not exist.
    """

    def __init__(self, engine: str, threads: int = 1, *, folder: Path | None = None, progress: Progress = silent) -> None:
        self.engine, self.threads, self.progress = find_engine(engine), threads, progress
        self.made_on = {"engine": engine, "version": self.engine.version, "threads": threads, "processor": processor()}
        root = folder or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "irtool" / "layer-times"
        name = "-".join("".join(c if c.isalnum() or c == "." else "_" for c in str(part)) for part in self.made_on.values())
        self.file = root / f"{name[:200]}.json"
        self._times = self._kept()

    def times(self, samples: Iterable[Sample]) -> dict[Sample, float]:
        """Milliseconds of each sample that the engine takes; what is not known yet is timed now, and kept."""
        wanted = dict.fromkeys(samples)
        missing = [sample for sample in wanted if sample.key not in self._times]
        if missing:
            for done, (sample, found) in enumerate(_all_timed(self.engine, missing, self.threads), 1):
                self._times[sample.key] = found
                self.progress(Status(f"time layers in {self.engine.name}", done, len(missing)))
            self._keep()
        return {sample: self._times[sample.key] for sample in wanted if sample.key in self._times}

    def _kept(self) -> dict[str, float]:
        """The times in the file, if it is one of ours; nothing else is believed."""
        try:
            plain = parse_json(read_text(self.file, LARGEST_CACHE))
        except (OSError, ValueError):
            return {}
        if not isinstance(plain, dict) or plain.get("format") != FORMAT or plain.get("made_on") != self.made_on:
            return {}
        times = plain.get("times")
        return {key: float(value) for key, value in times.items() if _believable(key, value)} if isinstance(times, dict) else {}

    def _keep(self) -> None:
        text = json.dumps({"format": FORMAT, "made_on": self.made_on, "times": self._times}, indent=1)
        if len(text) > LARGEST_CACHE:
            return
        with contextlib.suppress(OSError, IrtoolError):  # it is a convenience
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.file) as temporary:
                temporary.write_text(text + "\n", encoding="utf-8")


def _believable(key: object, value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and 0 <= value <= _MOST_MS
    return number and isinstance(key, str) and len(key) <= _LONGEST


def _all_timed(engine: Engine, samples: Sequence[Sample], threads: int) -> Iterator[tuple[Sample, float]]:
    with scratch_folder() as folder:
        for part in _parts(samples) if engine.between is not None else ([sample] for sample in samples):
            yield from _of_one_file(engine, part, threads, folder)


def _of_one_file(engine: Engine, part: list[Sample], threads: int, folder: Path) -> Iterator[tuple[Sample, float]]:
    """The times of samples that one file holds; of each alone, where the engine refuses them together; of none that it cannot run."""
    source = folder / "samples.onnx"
    onnx.save(model_of(part), str(source))
    try:
        file = engine.written(source, verify=False)
    except IrtoolError:
        for sample in part if len(part) > 1 else ():
            yield from _of_one_file(engine, [sample], threads, folder)
        return
    for number, sample in enumerate(part):
        with contextlib.suppress(IrtoolError):
            between = engine.between
            session = engine.session(file, threads) if between is None else between(file, threads, f"x{number}", f"y{number}")
            yield sample, _timed(session, sample, threads)


def _parts(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    part: list[Sample] = []
    held = 0
    for sample in samples:
        size = prod(sample.kernel) * sample.inputs * sample.outputs // max(sample.groups, 1) if sample.groups else sample.inputs
        if part and held + size > _TOGETHER:
            yield part
            part, held = [], 0
        part.append(sample)
        held += size
    if part:
        yield part


def _timed(session: Session, sample: Sample, threads: int) -> float:
    """Milliseconds of the sample alone: the least of several runs, since all that disturbs adds to it."""
    x = np.random.default_rng(0).normal(size=sample.shape).astype(np.float32)
    return least_ms(lambda: session.run(x), clock_of(threads)) / sample.repeats


def clock_of(threads: int) -> Callable[[], float]:
    """Choose the clock of an engine: processor time where it has one thread, so that other programs do not count, else the wall's."""
    return time.process_time if threads == 1 else time.perf_counter


def load() -> float:
    """Count the programs that wanted each core in the last minute; 0 where the system does not tell."""
    return os.getloadavg()[0] / cores() if hasattr(os, "getloadavg") else 0.0


def is_disturbed(threads: int) -> bool:
    """Whether times of so many threads hold what other programs take now: the wall's clock (`clock_of`), and more programs than cores."""
    return threads > 1 and load() > 1


def least_ms(run: Callable[[], object], clock: Callable[[], float]) -> float:
    """The least milliseconds of some runs, after one that does not count."""
    run()
    found: list[float] = []
    end = clock() + _SECONDS
    while len(found) < _RUNS or clock() < end:
        start = clock()
        run()
        found.append((clock() - start) * 1e3)
    return min(found)
