"""How a model is compressed, as the work itself takes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from irtool.passes.prune import Constants
from irtool.pruning.plan import Plan
from irtool.workflows.compress.search import Bound


@dataclass(frozen=True)
class Settings:
    """Settings of a compression.

    Attributes:
        plan: arguments of `irtool.plan`.
        constants: see `prune`.
        calibrate: training images to measure removed channels' means on; 0: batch norm's statistics tell.
        reconstruct: training images, without their labels, to refit every layer on after slicing (`constants` and `calibrate`
            have no say then); 0: none.
        noise: without images, refit on noise where batch norms tell enough; else `constants` has its say.
        distil: how often each image is looked at while the refitted net follows the original's outputs; 0: it does not; None: where that
            is a minute's work (see `irtool.workflows.compress.gains`).
        opset: of the ONNX file.
        runs: timed runs of each model in each engine.
        threads: of each engine while it is timed. One is the default: what several gain depends on what else the machine
            does, and a small net gains little.
        unchecked: accept steps that have no reference in numbers, on the proof by labels alone.
        given: a plan to carry out, in place of one that is made.
        bound: the accuracy that may be lost, and what may be spent on keeping it; None: what the plan asks for, whatever it loses.
    """

    plan: Mapping[str, Any] = field(default_factory=dict)
    constants: Constants = "absorb"
    calibrate: int = 0
    reconstruct: int = 0
    noise: bool = False
    distil: int | None = 0
    opset: int = 17
    runs: int = 50
    threads: int = 1
    unchecked: bool = False
    bound: Bound | None = None
    given: Plan | None = None
