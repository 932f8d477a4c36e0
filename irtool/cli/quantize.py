"""`irtool quantize`: a float model to int8, with the accuracy kept."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from irtool.backends.onnx_profile import operator_times
from irtool.cli import options
from irtool.cli.data import DataOptions, example_shapes
from irtool.cli.models import graph_of, input_shapes
from irtool.cli.output import output_folder
from irtool.cli.quantize_data import Images, load_images
from irtool.cli.quantize_job import ENGINES, Outcome, Settings, quantize_graph, record
from irtool.cli.screen import out as console
from irtool.cli.screen import screen
from irtool.errors import OptionError
from irtool.quant import Scheme, grid
from irtool.quant.observers import METHODS
from irtool.quant.recipe import SCHEMES
from irtool.quant.steps import steps, steps_text
from irtool.quant.weights import METHODS as WEIGHT_METHODS
from irtool.quant.weights import steps_of
from irtool.report.sensitivity import plot_sensitivity, write_sensitivity
from irtool.train import Data

NOISE = 0.05
"""Ratios of latencies that are this near to 1 say nothing."""


class Backend(StrEnum):
    """The engine that the int8 file is for."""

    ONNX = "onnx"
    MNN = "mnn"


def quantize(
    model: options.ModelArgument,
    calib: Annotated[
        str, typer.Option("--calib", "-c", help="Images to calibrate with: like --data, or a folder of images alone.", metavar="DATA")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for what is made.")],
    backend: Annotated[Backend, typer.Option(help="The engine that the file is for.")] = Backend.ONNX,
    max_drop: Annotated[float, typer.Option(help="How many points of accuracy may be lost. Layers stay in float until that holds.")] = 0.3,
    weights: options.Weights = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="Labelled images to score on; default: the test split of --calib.", metavar="DATA")
    ] = None,
    inputs: options.Inputs = None,
    images: Annotated[int, typer.Option(help="How many images to calibrate with.")] = 512,
    method: Annotated[str, typer.Option(help=f"How ranges are chosen: {', '.join(METHODS)}.")] = "mse",
    weight_method: Annotated[str, typer.Option(help=f"How weights' scales are chosen: {', '.join(WEIGHT_METHODS)}.")] = "max",
    weight_bits: Annotated[
        int | None, typer.Option(help="2 to 8. Default: 8 for mnn; 7 for onnx, where 8 overflow on x86 CPUs without VNNI.")
    ] = None,
    activations: Annotated[str | None, typer.Option(help="uint8 or int8. Default: uint8 for onnx; mnn has int8 only.")] = None,
    correct_bias: Annotated[bool, typer.Option(help="Take the mean of the weights' rounding error out of the biases.")] = True,
    equalise: Annotated[bool, typer.Option(help="Equalise the ranges of channels between layers first.")] = False,
    weights_only: Annotated[bool, typer.Option("--weights-only", help="Quantise weights alone: for size, computed in float.")] = False,
    sensitivity: Annotated[bool, typer.Option(help="Measure each layer alone, even where the accuracy holds.")] = True,
    mean: options.Mean = None,
    std: options.Std = None,
    limit: options.Limit = None,
    image_size: options.ImageSize = None,
    opset: options.Opset = 17,
    runs: Annotated[int, typer.Option(help="Timed runs of each model.")] = 100,
    threads: Annotated[int, typer.Option(help="Threads of the engine.")] = 1,
) -> None:
    """Write an int8 model, and compare its accuracy, bytes and latency with the float model's.

    Writes float and int8 files of the engine, a .json beside each .mnn with the preprocessing, steps.txt (where the model goes
    into integers and out again, and why), sensitivity.json and .png, and report.json.

    [bold]Example[/]: irtool quantize small --calib cifar10.zip --backend mnn --max-drop 0.3 --out small-int8
    """  # fmt: skip
    weight_bits = 8 if weights_only and weight_bits is None else weight_bits  # nothing overflows in float
    scheme = _scheme(backend, method, weight_method, weight_bits, activations, correct_bias)
    if runs < 1 or threads < 1 or not max_drop >= 0:
        raise OptionError(
            f"--runs {runs}, --threads {threads}, --max-drop {max_drop}", remedy="Give at least 1 run and thread, and a drop of 0 or more."
        )
    settings = Settings(backend.value, scheme, max_drop / 100, runs, threads, sensitivity, opset, equalise, weights_only)
    with output_folder(out) as folder, screen() as progress:
        found = load_images(model, DataOptions(calib, mean, std, limit, image_size), data, images, progress)
        classes = found.scored.classes if found.labelled else ()
        with progress.stage("trace"):
            shapes = example_shapes(Data("", found.calibration, found.scored), input_shapes(inputs), own_batch=model.endswith(".onnx"))
            graph = graph_of(model, weights, shapes)
        outcome = quantize_graph(graph, found, classes, settings, folder, progress)
        borders = steps(outcome.model, outcome.placement)
        _write(folder, outcome, found, classes, settings, steps_text(borders, outcome.placement))
        verdict = _verdict(outcome, settings, found, folder / f"int8{ENGINES[settings.backend].suffix}", len(borders))
    for note in outcome.notes:
        console().print(note, markup=False)
    console().print(_table(outcome, settings, found))
    if outcome.floating:
        console().print(f"left in float for accuracy: {', '.join(outcome.floating)}", markup=False)
    console().print(verdict, markup=False)
    console().print(f"written to {out}", markup=False)


def _scheme(
    backend: Backend, method: str, weight_method: str, weight_bits: int | None, activations: str | None, correct_bias: bool
) -> Scheme:
    default = SCHEMES[backend.value]()
    kind = activations or default.activations
    if backend is Backend.MNN and kind != "int8":
        raise OptionError(f"--activations {kind}", remedy="MNN has int8 only: leave --activations out.")
    for option, value, table in (("--method", method, METHODS), ("--weight-method", weight_method, WEIGHT_METHODS)):
        if value not in table:
            raise OptionError(f"{option} {value}", remedy=f"Choose one of {', '.join(table)}.")
    grid(kind)
    bits = default.weight_bits if weight_bits is None else weight_bits
    steps_of(bits)
    return Scheme(kind, default.symmetric, method, weight_method, bits, correct_bias)


def _write(folder: Path, outcome: Outcome, images: Images, classes: tuple[str, ...], settings: Settings, text: str) -> None:
    (folder / "steps.txt").write_text(text + "\n", encoding="utf-8")
    plain = record(outcome, images, classes, settings)
    (folder / "report.json").write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    if settings.backend == "mnn":
        (folder / "float.onnx").unlink()
        beside = json.dumps({"preprocessing": images.preprocessing.to_dict(), "classes": list(classes)}, indent=1) + "\n"
        for name in ("float.json", "int8.json"):
            (folder / name).write_text(beside, encoding="utf-8")
    if outcome.sensitivity:
        count = min(512, len(images.scored))
        write_sensitivity(outcome.sensitivity, folder / "sensitivity.json", images=count, floating=outcome.floating)
        plot_sensitivity(outcome.sensitivity, folder / "sensitivity.png", expected=outcome.expected, floating=outcome.floating)


def _table(outcome: Outcome, settings: Settings, images: Images) -> Table:
    table = Table(title=f"{settings.backend}: float and int8", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name in ("", "float", "int8", ""):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    before, after = outcome.before, outcome.after
    label = f"accuracy ({len(images.scored):,} images)" if images.labelled else f"agreement with float ({len(images.scored):,} images)"
    points = 100 * (after.accuracy - before.accuracy)
    table.add_row(label, f"{100 * before.accuracy:.2f} %", f"{100 * after.accuracy:.2f} %", f"{points:+.2f} points")
    table.add_row("bytes", f"{before.bytes:,}", f"{after.bytes:,}", f"{after.bytes / before.bytes:.3f} of float")
    table.add_row("latency, ms", f"{before.latency_ms:.2f}", f"{after.latency_ms:.2f}", f"{outcome.ratio:.2f} of float, by pairs")
    layers = len(outcome.placement.layers)
    kind = "weights alone are int8" if settings.weights_only else f"{layers} of {layers + len(outcome.floating)} layers in int8"
    table.caption = f"{kind}; ms: median, batch 1, {settings.threads} thread(s)"
    table.caption_justify = "left"
    return table


def _verdict(outcome: Outcome, settings: Settings, images: Images, file: Path, borders: int) -> str:
    """One line: whether int8 is worth it here, and if not, why."""
    drop = 100 * (outcome.before.accuracy - outcome.after.accuracy)
    worse = f"int8 is worse by {drop:.2f} points, within the {100 * settings.max_drop:.2f} allowed" if drop > 0 else "int8 is no worse"
    if outcome.ratio <= 1 + NOISE:
        return f"{worse}, and {f'{1 / outcome.ratio:.2f}x' if outcome.ratio < 1 - NOISE else 'about'} as fast as float."
    if settings.weights_only:
        return f"{worse}, at {outcome.ratio:.2f}x the time of float: weights alone save bytes, not time."
    reasons = [f"{borders} steps in and out of integers"]
    if settings.backend == "onnx":
        times = operator_times(file, [next(images.batches(1))])
        reasons.append("time goes to " + ", ".join(f"{op} {time:.2f} ms" for op, time in list(times.items())[:3]))
    if _lacks_vnni():
        reasons.append("this CPU has no VNNI instructions, which is where int8 gains")
    return f"{worse}, but SLOWER: {outcome.ratio:.2f}x the time of float ({'; '.join(reasons)}). Prefer the float file if time matters more than bytes."


def _lacks_vnni() -> bool:
    """Whether this is an x86 CPU that is known to have no 8-bit dot products."""
    try:
        flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return False
    return "vnni" not in flags
