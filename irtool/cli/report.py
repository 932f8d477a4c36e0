"""`irtool report`: a run folder as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from irtool.cli.screen import answer
from irtool.cli.screen import out as console
from irtool.workflows.folders.output_folder import keep_inputs
from irtool.workflows.folders.run_folder import PAGE, write_page


def report(
    run: Annotated[Path, typer.Argument(help="The folder of an irtool compress run.", metavar="RUN_DIR")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help=f"The page; default: {PAGE} in the folder.", metavar="FILE")] = None,
) -> None:
    """Make the page of a run: graphs side by side, channels kept, costs, the chain of equality, training and sensitivity curves.

    One HTML file that loads nothing from the network. irtool compress writes it too; make it anew when files were added to the
    folder (history.json or log.csv of a training, sensitivity.json).

    Example: irtool report small
    """
    target = out if out is not None else run / PAGE
    keep_inputs([target], (path for kind in ("*.json", "*.csv") for path in run.glob(kind)))
    write_page(run, target)
    answer({"page": str(target)})
    console().print(f"written to {target}", markup=False)
