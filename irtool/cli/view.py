"""`irtool view`: one model as a page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from irtool.analysis.cost import cost
from irtool.analysis.diff.diff import diff
from irtool.atomic_files import replacing
from irtool.channels.groups import channel_groups
from irtool.cli import options
from irtool.cli.inspect import layer_rows, plain
from irtool.cli.screen import answer, screen
from irtool.cli.screen import out as console
from irtool.page import view_page
from irtool.workflows.folders.output_folder import keep_inputs, model_files
from irtool.workflows.loading.model_inputs import input_shapes, input_values
from irtool.workflows.loading.models import graph_of


def view(
    model: options.ModelArgument,
    weights: options.Weights = None,
    inputs: options.Inputs = None,
    values: options.Values = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The page; default: the model's name and .html.", metavar="FILE")] = None,
) -> None:
    """Make a page of one model: its graph, folded by module, what each node costs, and which layers can be pruned.

    One HTML file that loads nothing from the network.

    Example: irtool view resnet18 --input 1x3x224x224
    """
    target = out if out is not None else Path(f"{re.sub(r'[^A-Za-z0-9_-]+', '-', Path(model).stem).strip('-')}.html")
    keep_inputs([target], model_files(model, weights))
    with screen() as progress, progress.stage("read", logged=False):
        graph = graph_of(model, weights, input_shapes(inputs), sound=False, values=input_values(values))
        facts = plain(graph, list(layer_rows(channel_groups(graph))), cost(graph))
        page = view_page(facts, diff(graph, graph).picture, Path(model).name if model.endswith(".onnx") else model)
    with replacing(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
    answer({"page": str(target)})
    console().print(f"written to {target}", markup=False)
