"""Measurements of a run: values that become a table on the screen and report.json."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from irtool.atomic_files import parse_json, read_text, replacing
from irtool.commit import restore
from irtool.engines.table import ENGINES
from irtool.errors import FileError
from irtool.workflows.equality.chain import Chain
from irtool.workflows.folders.steps import instead_of_run

FORMAT = 1
TIMED = ("torch", *ENGINES)
"""Engines that models are timed in: torch runs the graph itself, engines run files."""


@dataclass(frozen=True)
class Measured:
    """One model, as it was or as it became.

    Attributes:
        params: entries of all parameters.
        macs: multiply-accumulates for one sample.
        weight_bytes: of parameters and buffers in memory.
        accuracy: share of test images that are right, in [0, 1]; None without data.
        images: how many were scored.
        file_bytes: by kind: `model`, `onnx`, and what engines have files of their own, as `mnn`.
        latency_ms: by engine, at batch 1: of the original the median of `runs`; of a model timed in pairs with it that median times the
            median ratio, so that two times and their ratio agree (`PairedLatency.milliseconds`).
        runs: how many runs the medians come from, at least.
        threads: of each engine in those runs.
    """

    params: int
    macs: int
    weight_bytes: int
    accuracy: float | None = None
    images: int = 0
    file_bytes: Mapping[str, int] = field(default_factory=dict)
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    runs: int = 0
    threads: int = 0


@dataclass(frozen=True)
class Report:
    """All that a compress run found out.

    Attributes:
        source: how to get the original again: model, weights, data, input sizes.
        options: how it was compressed.
        preprocessing: how pictures become inputs, as `Preprocessing.to_dict` has it; None without data.
        classes: the data's class names.
        tracer: which tracer served.
        channels: channels of all layers, before and after.
        notes: what the passes said.
        chain: the links of equality.
        before, after: the two models.
        ratios: by engine: the median over paired runs of the time after over the time before.
        files: the names of what was written, by kind.
        truth: what accuracies are against: "labels", or "answers" of the original, where there are none.
        effect: how far the compressed model's outputs are from the original's: the fields of `Effect`; None where that was not measured.
        speed: a sentence for each engine in which it became no faster: why, and what helps.
    """

    source: Mapping[str, Any]
    options: Mapping[str, Any]
    preprocessing: Mapping[str, Any] | None
    classes: tuple[str, ...]
    tracer: str
    channels: tuple[int, int]
    notes: tuple[str, ...]
    chain: Chain
    before: Measured
    after: Measured
    ratios: Mapping[str, float]
    files: Mapping[str, str]
    truth: str = "labels"
    speed: tuple[str, ...] = ()
    effect: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON data, with the versions that made it."""
        plain = asdict(self)
        plain["chain"] = self.chain.to_dict()
        return {"format": FORMAT, "made_with": versions(), **plain}

    def write(self, path: Path) -> None:
        """Write `to_dict` as JSON.

        Raises:
            FileError: the file cannot be written.
        """
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n")


def read_record(path: Path) -> dict[str, Any]:
    """Read what `Report.write` wrote.

    Raises:
        FileError: missing, no JSON, or of another format.
    """
    restore(path.parent)
    try:
        plain = parse_json(read_text(path))
    except OSError as error:
        remedy = instead_of_run(path.parent) or "Give the --out folder of an irtool compress run."
        raise FileError(f"cannot be read ({error.strerror})", where=str(path), remedy=remedy) from error
    except ValueError as error:
        raise FileError("not JSON, or cut off", where=str(path), remedy="Run irtool compress again.") from error
    if isinstance(plain, dict) and "int8" in plain:
        raise FileError("is of irtool quantize", where=str(path), remedy="Give the --out folder of an irtool compress run.")
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        raise FileError("not a report of this version", where=str(path), remedy="Run irtool compress again.")
    return plain


def versions() -> dict[str, str]:
    """The versions of what computes the numbers."""
    found = {"python": platform.python_version()}
    for name in ("irtool", "torch", "onnx", *(row.package for row in ENGINES.values())):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found
