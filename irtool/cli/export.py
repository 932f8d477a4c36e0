"""`irtool export`: a model as files for engines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from irtool.cli import options
from irtool.cli.screen import answer, screen
from irtool.cli.screen import out as console
from irtool.cli.tables import chain_table
from irtool.workflows.export import OWN_SUFFIXES, write_files
from irtool.workflows.folders.output_folder import keep_inputs, model_files
from irtool.workflows.loading.model_inputs import input_shapes
from irtool.workflows.loading.models import graph_of, onnx_file


def export(
    model: options.ModelArgument,
    out: Annotated[
        list[Path], typer.Option("--out", "-o", help=f"Write here: .onnx, {' or '.join(OWN_SUFFIXES)}; may be repeated.", metavar="FILE")
    ],
    weights: options.Weights = None,
    inputs: options.Inputs = None,
    fold: Annotated[bool, typer.Option(help="Fold batch norms into the layers before them first.")] = True,
    dynamic_batch: Annotated[bool | None, typer.Option(help="Leave the batch size free; default: where the model lets it.")] = None,
    opset: options.Opset = 17,
    half: Annotated[
        bool, typer.Option("--half", "--fp16", help="Store weights as half floats: half of the bytes; engines compute in float with them.")
    ] = False,
) -> None:
    """Write a model as files for engines, compared with torch and with each other before they appear.

    The suffix of a file says for which engine it is; engines that have none of their own read the .onnx file. From an .onnx file it
    writes the folded one, converts it, or both; without an .onnx file to write it converts the file as it is.

    Example: irtool export torchvision.models:resnet18 --input 1x3x224x224 --out resnet18.onnx --out resnet18.mnn
    """
    keep_inputs(out, model_files(model, weights))
    shapes = input_shapes(inputs)
    with screen() as progress:
        chain = write_files(
            lambda: graph_of(model, weights, shapes),
            onnx_file(model),
            out,
            progress,
            fold=fold,
            opset=opset,
            dynamic_batch=dynamic_batch,
            half=half,
        )
    answer({"files": {str(path): path.stat().st_size for path in out}, "chain": chain.to_dict()})
    console().print(chain_table(chain))
    for path in out:
        console().print(f"written: {path} ({path.stat().st_size:,} bytes)")
