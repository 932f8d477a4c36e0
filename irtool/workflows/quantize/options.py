"""Options of int8: the flags of `irtool quantize` and the options of a recipe's step `quantize`, in one place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from irtool.engines.table import ENGINES, QUANTISING, REFERENCE
from irtool.engines.threads import FEWER_THREADS, MOST_THREADS
from irtool.errors import OptionError
from irtool.quant import Scheme
from irtool.quant.affine import GRIDS
from irtool.quant.observers import METHODS
from irtool.quant.weights import METHODS as WEIGHT_METHODS
from irtool.workflows.quantize.forms import GOALS
from irtool.workflows.quantize.graph import Settings

ACTIVATIONS = tuple(dict.fromkeys(dtype for dtype, _ in GRIDS))


@dataclass(frozen=True)
class QuantizeOptions:
    """Options of a quantisation, as a user gives them.

    Args:
        engine: The engine that the file is for: onnxruntime, mnn.
        max_drop: How many points of accuracy may be lost. Layers stay in float until that holds.
        images: How many images to calibrate with.
        method: How ranges are chosen: minmax, percentile, moving_average, mse, kl.
        weight_method: How weights' scales are chosen: max, admm.
        weight_bits: 2 to 8. Default 8; 7 for onnxruntime, where 8 overflow on x86 CPUs without VNNI.
        activations: uint8 or int8. Default uint8 for onnxruntime; mnn has int8 only.
        correct_bias: Take the mean of the weights' rounding error out of the biases; on unless --no-correct-bias.
        equalise: Equalise the ranges of channels between layers first.
        weights_only: Quantise weights alone: for size, computed in float.
        refine: Round weights together and fit biases, layer after layer, to what the layers read; on unless --no-refine.
        goal: What the recommended file has the least of, within the bound: size, speed.
        sensitivity: Measure each layer alone, even where the accuracy holds; on unless --no-sensitivity.
        opset: ONNX operator set, 11 to 26; an .onnx file keeps its own.
        runs: Timed runs of each model.
        threads: Threads of the engine.
    """

    engine: str = REFERENCE.name
    max_drop: float = 0.3
    images: int = 512
    method: str = "mse"
    weight_method: str = "max"
    weight_bits: int | None = None
    activations: str | None = None
    correct_bias: bool = True
    equalise: bool = False
    weights_only: bool = False
    refine: bool = True
    goal: str = "size"
    sensitivity: bool = True
    opset: int = 17
    runs: int = 100
    threads: int = 1

    def mistakes(self) -> dict[str, OptionError]:
        """Find what can never work, by the option's name."""
        found = {
            name: OptionError(f"{name} {value}", remedy=remedy)
            for name, (fine, remedy) in _FINE.items()
            if (value := getattr(self, name)) is not None and not fine(value)
        }
        if self.engine in ENGINES and self.engine not in QUANTISING:
            what = f"engine {self.engine}, for which irtool writes no int8 files"
            found["engine"] = OptionError(what, remedy=f"Choose one of {', '.join(QUANTISING)}.")
        row = QUANTISING.get(self.engine)
        if row is not None and self.activations in ACTIVATIONS and self.activations not in row.int8.activations:
            remedy = f"{row.title} has {' and '.join(row.int8.activations)} only: leave activations out."
            found["activations"] = OptionError(f"activations {self.activations}", remedy=remedy)
        return found

    def settings(self) -> Settings:
        """Return the settings of the work itself.

        Raises:
            OptionError: the first mistake.
        """
        for mistake in self.mistakes().values():
            raise mistake
        int8 = ENGINES[self.engine].int8
        usual = int8.scheme
        scheme = Scheme(
            self.activations or usual.activations,
            usual.symmetric,
            self.method,
            self.weight_method,
            int8.bits(self.weight_bits, self.weights_only),
            self.correct_bias,
        )
        return Settings(
            self.engine, scheme, self.max_drop / 100, self.runs, self.threads, self.sensitivity, self.opset, self.equalise, self.weights_only,
            self.refine, self.goal,
        )  # fmt: skip


def _one_of(*names: str) -> tuple[Callable[[Any], bool], str]:
    return names.__contains__, f"Choose one of {', '.join(names)}."


def _positive(what: str) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value >= 1, f"Give at least one {what}."


_FINE: dict[str, tuple[Callable[[Any], bool], str]] = {
    "engine": _one_of(*QUANTISING),
    "max_drop": (lambda value: value >= 0, "Give a drop of 0 or more points."),
    "images": (lambda value: value >= 1, "Calibrate with at least one image; a few hundred are usual."),
    "method": _one_of(*METHODS),
    "weight_method": _one_of(*WEIGHT_METHODS),
    "weight_bits": (lambda value: 2 <= value <= 8, "Choose 2 to 8."),
    "activations": (ACTIVATIONS.__contains__, f"Choose {' or '.join(ACTIVATIONS)}."),
    "goal": _one_of(*GOALS),
    "opset": (lambda value: 11 <= value <= 26, "Choose one from 11 to 26."),
    "runs": _positive("run"),
    "threads": (lambda value: 1 <= value <= MOST_THREADS, FEWER_THREADS),
}
"""For each option, whether a value can work, and what to do if not."""
