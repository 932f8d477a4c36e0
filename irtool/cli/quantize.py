"""`irtool quantize`: a float model to int8, with the accuracy kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from irtool.cli import options
from irtool.cli.flags import with_flags
from irtool.cli.output import QUANTIZE, keep_inputs, model_files, output_folder
from irtool.cli.quantize_report import borders, table, verdict, write_report
from irtool.cli.screen import out as console
from irtool.cli.screen import screen
from irtool.engines.table import ENGINES
from irtool.train import Data
from irtool.workflows.calibration_images import load_images
from irtool.workflows.data import DataOptions, example_shapes, file_shapes
from irtool.workflows.models import Shape, graph_of, input_shapes, input_values, onnx_file
from irtool.workflows.quantize import quantize_graph
from irtool.workflows.quantize_options import QuantizeOptions


@with_flags(QuantizeOptions, panel="Quantisation")
def quantize(
    model: options.ModelArgument,
    calib: Annotated[
        str, typer.Option("--calib", "-c", help="Images to calibrate with: like --data, or a folder of images alone.", metavar="DATA")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for what is made.")],
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

    Writes float and int8 files of the engine, a .json beside each .mnn with the preprocessing, steps.txt (where the model goes
    into integers and out again, and why), sensitivity.json and .png, and report.json.

    [bold]Example[/]: irtool quantize small --calib cifar10.zip --backend mnn --max-drop 0.3 --out small-int8
    """
    wanted = QuantizeOptions(**{name: value for name, value in chosen.items() if value is not None})
    settings = wanted.settings()
    keep_inputs((out / f"{kind}{engine.suffix}" for engine in ENGINES.values() for kind in ("float", "int8")), model_files(model, weights))
    with output_folder(out, QUANTIZE) as folder, screen() as progress:
        images = load_images(model, DataOptions(calib, mean, std, limit, image_size, last=True), data, wanted.images, progress)
        with progress.stage("trace"):
            file, given, fixed = onnx_file(model), input_shapes(inputs), input_values(values)
            if file is not None and not given:
                shapes: Sequence[Shape] = file_shapes(file, images.preprocessing.input_shape, fixed)
            else:
                shapes = example_shapes(Data("", images.calibration, images.scored), given, own_batch=file is not None)
            graph = graph_of(model, weights, shapes, values=fixed)
        outcome = quantize_graph(graph, images, settings, folder, progress)
        write_report(folder, outcome, images, settings)
        judged = verdict(outcome, settings, folder / f"int8{ENGINES[settings.backend].suffix}")
    for part in (*outcome.notes, table(outcome, settings, images), *borders(outcome, settings.backend), judged, f"written to {out}"):
        console().print(part, markup=False)
