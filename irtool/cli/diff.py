"""`irtool diff`: what changed between two models."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from irtool.analysis.diff.diff import diff as graph_diff
from irtool.atomic_files import replacing
from irtool.cli import options
from irtool.cli.screen import answer, mode
from irtool.ir import Graph
from irtool.nests import tensors_in
from irtool.workflows.loading.model_inputs import input_shapes
from irtool.workflows.loading.models import graph_of, saved_model


def diff(
    a: Annotated[str, typer.Argument(help=options.MODEL_HELP, metavar="A")],
    b: Annotated[str, typer.Argument(help="Likewise.", metavar="B")],
    weights_a: Annotated[Path | None, typer.Option(help="A state dict for the first model.", metavar="FILE")] = None,
    weights_b: Annotated[Path | None, typer.Option(help="A state dict for the second model.", metavar="FILE")] = None,
    inputs: options.Inputs = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with both graphs side by side, too.", metavar="FILE")] = None,
) -> None:
    """Show what changed between two models: nodes, channels, parameters, totals.

    Any two models, PyTorch or ONNX. Exit code 0: no difference (other operators that compute the same are none); 1: some; 2: trouble.

    Example: irtool diff PreResNet:depth=38 small
    """
    first, second = _graphs((a, weights_a), (b, weights_b), input_shapes(inputs))
    found = graph_diff(first, second.at_batch_of(first))
    if html is not None:
        with replacing(html) as temporary:
            temporary.write_text(found.to_html(a, b), encoding="utf-8")
    answer(found.to_dict())
    if not mode().wordless:
        typer.echo(found.text(color=sys.stdout.isatty()))
    raise typer.Exit(0 if found.same else 1)


def _graphs(a: tuple[str, Path | None], b: tuple[str, Path | None], shapes: list[tuple[int, ...]]) -> list[Graph]:
    """Both graphs. A saved one knows its input sizes, and lends them to one that must be traced."""
    found: list[Graph | None] = [graph_of(model, weights, shapes, sound=False) if saved_model(model) else None for model, weights in (a, b)]
    known = next((graph for graph in found if graph is not None), None)
    if known is not None and not shapes:
        shapes = [tuple(tensor.shape) for tensor in tensors_in(known.example_inputs)]
    return [graph or graph_of(model, weights, shapes, sound=False) for graph, (model, weights) in zip(found, (a, b), strict=True)]
