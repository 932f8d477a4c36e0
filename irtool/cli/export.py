"""`irtool export`: a model as ONNX and MNN files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, cast

import typer

from irtool.analysis.randomness import require_repeatable
from irtool.atomic_files import MAKE_ROOM, replacing
from irtool.cli import options
from irtool.cli.screen import Screen, screen
from irtool.cli.screen import out as console
from irtool.cli.tables import chain_table
from irtool.engines import export_onnx
from irtool.engines.agreement import sample_inputs
from irtool.engines.onnxruntime.session import OnnxSession
from irtool.errors import FileError, OptionError
from irtool.hosts.onnx.graph import OnnxGraph
from irtool.hosts.onnx.load import load_onnx, save_onnx
from irtool.hosts.torch.graph import FxGraph
from irtool.passes import fold_batchnorm
from irtool.workflows.chain import Chain, Link, chain_inputs, files_link, fitting_inputs, onnx_link, own_inputs, takes_any_batch
from irtool.workflows.compress_onnx import to_mnn
from irtool.workflows.model_inputs import input_shapes
from irtool.workflows.models import graph_of, onnx_file
from irtool.workflows.output_folder import keep_inputs, model_files


def export(
    model: options.ModelArgument,
    weights: options.Weights = None,
    inputs: options.Inputs = None,
    onnx: Annotated[Path | None, typer.Option(help="Write ONNX here.", metavar="FILE")] = None,
    mnn: Annotated[Path | None, typer.Option(help="Write MNN here.", metavar="FILE")] = None,
    fold: Annotated[bool, typer.Option(help="Fold batch norms into the layers before them first.")] = True,
    dynamic_batch: Annotated[bool | None, typer.Option(help="Leave the batch size free; default: where the model lets it.")] = None,
    opset: options.Opset = 17,
) -> None:
    """Write a model as ONNX, as MNN, or both, compared with torch (and with each other) before they appear.

    From an .onnx file it writes the folded one, converts it to MNN, or both; --mnn alone converts the file as it is.

    [bold]Example[/]: irtool export torchvision.models:resnet18 --input 1x3x224x224 --onnx resnet18.onnx --mnn resnet18.mnn
    """
    if onnx is None and mnn is None:
        raise OptionError("nothing to write", where="export", remedy="Give --onnx FILE, --mnn FILE, or both.")
    if onnx is not None and mnn is not None and onnx.resolve() == mnn.resolve():
        raise OptionError(f"--onnx and --mnn both name {onnx}", where="export", remedy="Give each file a name of its own.")
    keep_inputs((path for path in (onnx, mnn) if path is not None), model_files(model, weights))
    with screen() as progress, tempfile.TemporaryDirectory() as scratch, _placed_errors(Path(scratch), onnx, mnn):
        source = onnx_file(model)
        if source is not None and onnx is None:
            chain = _convert(source, mnn, Path(scratch), progress)
        else:
            with progress.stage("trace"):
                graph = graph_of(model, weights, input_shapes(inputs))
            graph = fold_batchnorm(graph) if fold else graph
            if isinstance(graph, OnnxGraph):
                chain = _write(graph, source, onnx, mnn, Path(scratch), progress)
            else:
                chain = _export(cast(FxGraph, graph), onnx, mnn, Path(scratch), progress, opset, dynamic_batch)
    written = [path for path in (onnx, mnn) if path is not None]
    console().print(chain_table(chain))
    for path in written:
        console().print(f"written: {path} ({path.stat().st_size:,} bytes)")


@contextmanager
def _placed_errors(scratch: Path, onnx: Path | None, mnn: Path | None) -> Iterator[None]:
    """What cannot be written is told by the names that the user gave, not by those of drafts."""
    try:
        yield
    except FileError as error:
        names = {str(path): option for option, path in (("--onnx", onnx), ("--mnn", mnn)) if path is not None}
        is_draft = error.where is not None and Path(error.where).is_relative_to(scratch)
        if error.remedy != MAKE_ROOM or not (is_draft or error.where in names):
            raise
        if is_draft:
            is_mnn = onnx is None or (mnn is not None and Path(str(error.where)).name != onnx.name)
            where, remedy = str(mnn if is_mnn else onnx), f"Make room in {tempfile.gettempdir()}, where it is written first."
        else:
            where, remedy = str(error.where), f"Choose another {names[str(error.where)]}, or make room."
        raise FileError(error.what, where=where, remedy=remedy) from error


def _export(
    graph: FxGraph, onnx: Path | None, mnn: Path | None, scratch: Path, progress: Screen, opset: int, dynamic_batch: bool | None
) -> Chain:
    require_repeatable(graph)
    free = takes_any_batch(graph) if dynamic_batch is None else dynamic_batch
    inputs = fitting_inputs(graph, chain_inputs(graph.example_inputs)) if free else own_inputs(graph)
    draft = scratch / (onnx.name if onnx is not None else "model.onnx")
    with progress.stage("export to ONNX"):
        export_onnx(graph, draft, opset=opset, dynamic_batch=free)
        links: list[Link] = [onnx_link(graph, draft, inputs)]
    if mnn is not None:
        with progress.stage("convert to MNN"):
            links.append(to_mnn(draft, _beside(draft), inputs))
    chain = Chain(tuple(links))
    chain.require()
    place(draft, onnx)
    place(_beside(draft), mnn)
    return chain


def _write(graph: OnnxGraph, source: Path | None, onnx: Path | None, mnn: Path | None, scratch: Path, progress: Screen) -> Chain:
    """An ONNX file rewritten, and converted to MNN if that is asked for."""
    assert source is not None
    assert onnx is not None
    draft = scratch / onnx.name
    inputs = fitting_inputs(graph, chain_inputs(graph.example_inputs))
    with progress.stage("write ONNX"):
        save_onnx(graph, draft)
        links: list[Link] = [files_link(source, draft, inputs), *([to_mnn(draft, _beside(draft), inputs)] if mnn is not None else [])]
    chain = Chain(tuple(links))
    chain.require()
    place(draft, onnx)
    place(_beside(draft), mnn)
    return chain


def _convert(source: Path, mnn: Path | None, scratch: Path, progress: Screen) -> Chain:
    """An ONNX file as it is, as MNN."""
    assert mnn is not None
    with progress.stage("convert to MNN"):
        load_onnx(source)  # refuses what asks for too much, which the engines would try
        chain = Chain((to_mnn(source, scratch / mnn.name, tuple(sample_inputs(OnnxSession(source).inputs))),))
    chain.require()
    place(scratch / mnn.name, mnn)
    return chain


def _beside(draft: Path) -> Path:
    """Where the draft's MNN file goes. Never onto the draft, whatever both are called in the end."""
    return draft.with_name(f"{draft.name}.mnn")


def place(draft: Path, target: Path | None) -> None:
    """Move a finished file, and the weights that may lie beside it, to where it was asked for."""
    if target is None:
        return
    beside = draft.with_name(f"{draft.name}.data")
    if beside.exists():
        with replacing(target.with_name(beside.name)) as temporary:
            shutil.copyfile(beside, temporary)
    with replacing(target) as temporary:
        shutil.copyfile(draft, temporary)
