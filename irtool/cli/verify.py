"""`irtool verify`: the chain of equality again, from the files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from irtool.cli import options
from irtool.cli.screen import answer, screen
from irtool.cli.screen import out as console
from irtool.cli.tables import chain_table
from irtool.workflows.equality.verify import verify as workflow

_REMEDY = "The files do not belong together, or one was changed: run irtool compress again."


def verify(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="A compress run's folder; an .onnx file; or two or three of a saved model, an .onnx file and an engine's file of it.",
            metavar="PATH",
        ),
    ],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The original; default: what the folder's report names.", metavar="MODEL")
    ] = None,
    weights: options.Weights = None,
    seed: Annotated[int, typer.Option(help="Of the inputs, which are normal noise.", min=0, max=options.LARGEST_SEED)] = 1,
    engine: Annotated[
        list[str] | None, typer.Option(help="Run the .onnx file in this engine too, as openvino; may be repeated.", metavar="NAME")
    ] = None,
    allow_unchecked: Annotated[
        bool, typer.Option("--allow-unchecked", help="Accept steps that no reference in numbers exists for, on the proof by labels alone.")
    ] = False,
) -> None:
    """Check the chain of equality from the files: masked = sliced = folded = ONNX = engines.

    An .onnx file alone is checked by onnx.checker, and what irtool reads in it is compared with the file in onnxruntime.

    Each link is shown with its errors and what is allowed; the exit code is 1 if one is broken. Without the original
    the first link is left out, and that is said.

    Example: irtool verify small
    """
    with screen() as progress:
        chain = workflow(*paths, model=model, weights=weights, seed=seed, engines=engine or (), progress=progress)
    answer({"chain": chain.to_dict()})
    console().print(chain_table(chain))
    chain.require(_REMEDY, unchecked=allow_unchecked)
