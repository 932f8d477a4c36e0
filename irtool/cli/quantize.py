"""`irtool quantize`: a float model to int8, with the accuracy kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from irtool.cli import options
from irtool.cli.flags import with_flags
from irtool.cli.screen import answer, screen
from irtool.cli.screen import out as console
from irtool.cli.tables import forms_table, stored_table
from irtool.errors import OptionError
from irtool.extras import absent
from irtool.hosts.onnx.files.given import Given
from irtool.workflows.loading.data import DataOptions
from irtool.workflows.loading.model_inputs import input_shapes, input_values
from irtool.workflows.loading.models import Shape
from irtool.workflows.quantize.graph import record
from irtool.workflows.quantize.options import QuantizeOptions
from irtool.workflows.quantize.report import borders
from irtool.workflows.quantize.run import quantize as workflow
from irtool.workflows.quantize.weights_alone import quantize_weights


@with_flags(QuantizeOptions, panel="Quantisation")
def quantize(
    model: options.ModelArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for what is made.")],
    calib: Annotated[
        str | None,
        typer.Option(
            "--calib",
            "-c",
            help="Images to calibrate with: like --data, or a folder of images alone; or a .npy file of inputs as the model takes them, one a row. "
            "--weights-only does without, and then without an accuracy.",
            metavar="DATA",
        ),
    ] = None,
    weights: options.Weights = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="Labelled images to score on; default: the test split of --calib.", metavar="DATA")
    ] = None,
    inputs: options.Inputs = None,
    values: options.Values = None,
    mean: options.Mean = None,
    std: options.Std = None,
    limit: options.Limit = None,
    image_size: options.ImageSize = None,
    **chosen: Any,
) -> None:
    """Write an int8 model, and compare its accuracy, bytes and latency with the float model's.

    Without labels the float model's answers are the labels. Of a detector or a segmenter, whose outputs are no scores of classes,
    the outputs themselves are compared: 100 % less the share of noise in them (0.3 points are 25 dB).

    With --weights-only and no images, weights become integers and half floats, computed in float, and no accuracy is told.

    Layers that stay in float are chosen on images of --calib that are neither calibrated with nor scored, by what the float model's own
    probabilities expect to be lost. The accuracy told is of the scored images, which choose nothing, with its standard error.

    Writes float and int8 files of the engine, and half, weights8 and for MNN weights4 (smaller, computed in float), a .json with the preprocessing beside files that cannot hold it, steps.txt (where the model goes
    into integers and out again, and why), sensitivity.json and .png, and report.json.

    Example: irtool quantize small --calib cifar10.zip --engine mnn --max-drop 0.3 --out small-int8
    """
    if calib is None:
        images = {"--data": data, "--mean": mean, "--std": std, "--limit": limit, "--image-size": image_size}
        _without_images(model, out, weights, input_shapes(inputs), input_values(values), images, chosen)
        return
    calibration, shapes, fixed = DataOptions(calib, mean, std, limit, image_size), input_shapes(inputs), input_values(values)
    with screen() as progress:
        done = workflow(model, out, calib=calibration, data=data, weights=weights, inputs=shapes, values=fixed, progress=progress, **chosen)
    answer(record(done.outcome, done.images, done.settings) | {"folder": str(out), "file": str(done.file), "verdict": done.verdict})
    shown = forms_table(done.outcome, done.settings, done.images)
    steps = borders(done.outcome, done.settings.engine)
    for part in (*done.outcome.notes, shown, *steps, done.verdict, *absent("matplotlib"), f"written to {out}"):
        console().print(part, markup=False)


def _without_images(
    model: str,
    out: Path,
    weights: Path | None,
    shapes: Sequence[Shape],
    fixed: Given | None,
    images: Mapping[str, Any],
    chosen: Mapping[str, Any],
) -> None:
    """Quantise weights alone, and say that no accuracy is known."""
    if not chosen.get("weights_only"):
        remedy = "Give --calib DATA (a folder of images will do), or --weights-only."
        raise OptionError("integers between layers need images", where="--calib", remedy=remedy)
    idle = [name for name, value in images.items() if value is not None]
    if idle:
        raise OptionError(f"{idle[0]} without --calib", remedy="Give --calib DATA: it says how pictures become inputs.")
    with screen() as progress:
        done = quantize_weights(model, out, weights=weights, inputs=shapes, values=fixed, progress=progress, **chosen)
    answer(done.to_dict() | {"folder": str(out), "file": str(done.file), "verdict": done.verdict})
    for part in (*done.notes, stored_table(done), done.verdict, f"written to {out}"):
        console().print(part, markup=False)
