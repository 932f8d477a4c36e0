"""`irtool verify`: the chain of equality again, from the files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from irtool.archive import load
from irtool.backends import OnnxSession
from irtool.backends.agreement import sample_inputs
from irtool.cli import options
from irtool.cli.data import DataOptions
from irtool.cli.job import FILES
from irtool.cli.models import fingerprint, graph_of
from irtool.cli.screen import Screen, screen
from irtool.cli.screen import out as console
from irtool.errors import DataError, FileError, OptionError
from irtool.ir import FxGraph
from irtool.passes import fold_batchnorm
from irtool.planning import Plan
from irtool.report.chain import Chain, Link, chain_inputs, fitting_inputs, folded_links, masked_links, mnn_link, onnx_link
from irtool.report.record import read_record
from irtool.report.tables import chain_table

_REMEDY = "The files do not belong together, or one was changed: run irtool compress again."


def verify(
    paths: Annotated[
        list[Path], typer.Argument(help="A compress run's folder; or a saved model, an .onnx and an .mnn file, two of them at least.")
    ],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The original; default: what the folder's report names.", metavar="MODEL")
    ] = None,
    weights: options.Weights = None,
    seed: Annotated[int, typer.Option(help="Of the inputs, which are normal noise.")] = 1,
) -> None:
    """Check the chain of equality from the files: masked = sliced = folded = ONNX = MNN.

    Each link is shown with its errors and what is allowed; the exit code is 1 if one is broken. Without the original
    the first link is left out, and that is said.

    [bold]Example[/]: irtool verify small
    """
    with screen() as progress:
        if len(paths) == 1 and paths[0].is_dir():
            chain = _folder(paths[0], model, weights, seed, progress)
        else:
            chain = _files(paths, seed, progress)
    console().print(chain_table(chain))
    chain.require(_REMEDY)


def _folder(folder: Path, model: str | None, weights: Path | None, seed: int, progress: Screen) -> Chain:
    record = read_record(folder / FILES["report"])
    sliced = load(folder / FILES["model"])
    inputs = fitting_inputs(sliced, chain_inputs(sliced.example_inputs, seed=seed))
    plan = Plan.from_json(folder / FILES["plan"])
    links: list[Link] = []
    with progress.stage("check masked = sliced"):
        try:
            graph, calibration = _original(record, model, weights, progress)
            links += masked_links(graph, plan, sliced, inputs, record["options"]["constants"], calibration)
        except (FileError, OptionError, DataError) as error:
            if model is not None or weights is not None:
                raise
            progress.show(f"masked = sliced is left out, for want of the original: {error}\n")
    folded = fold_batchnorm(sliced)
    with progress.stage("check sliced = folded = ONNX = MNN"):
        links += folded_links(sliced, folded, inputs)
        links.append(onnx_link(folded, folder / FILES["onnx"], inputs))
        links.append(mnn_link(folder / FILES["onnx"], folder / FILES["mnn"], inputs))
    return Chain(tuple(links))


def _original(record: Mapping[str, Any], model: str | None, weights: Path | None, progress: Screen) -> tuple[FxGraph, list[Any] | None]:
    """The graph before pruning, and the batches on which means were measured, if they were."""
    source, calibrate = record["source"], record["options"]["calibrate"]
    name = model or source["model"]
    if name is None:
        raise OptionError("the report names no model that can be built again", remedy="Give --model.")
    recorded = Path(source["weights"]) if source["weights"] else None
    graph = graph_of(name, weights or recorded, [tuple(shape) for shape in source["inputs"]])
    if fingerprint(graph) != source["fingerprint"]:
        raise OptionError(
            "its weights are not those that were compressed", where=name, remedy="Give --weights FILE: the checkpoint of that run."
        )
    return graph, [(_data(record, name, progress).sample(calibrate),)] if calibrate else None


def _data(record: Mapping[str, Any], model: str, progress: Screen) -> Any:
    source, known = record["source"], record["preprocessing"]
    mean, std = (",".join(map(str, known[name])) for name in ("mean", "std"))
    return DataOptions(source["data"], mean, std, source["limit"], source["image_size"]).load(model, progress)


def _files(paths: list[Path], seed: int, progress: Screen) -> Chain:
    by_kind = {path.suffix: path for path in paths}
    for path in paths:
        if not path.is_file():
            raise FileError("no such file", where=str(path), remedy="Give files that irtool wrote.")
    onnx, mnn = by_kind.pop(".onnx", None), by_kind.pop(".mnn", None)
    if len(by_kind) > 1 or onnx is None or len(paths) - len(by_kind) != (2 if mnn else 1) or (mnn is None and not by_kind):
        raise OptionError(
            f"cannot compare {', '.join(map(str, paths))}",
            where="verify",
            remedy="Give a folder; or an .onnx file with a saved model, an .mnn file, or both.",
        )
    links: list[Link] = []
    inputs: tuple[Any, ...] = tuple(sample_inputs(OnnxSession(onnx).inputs))
    for saved in by_kind.values():
        graph = load(saved)
        inputs = fitting_inputs(graph, chain_inputs(graph.example_inputs, seed=seed))
        with progress.stage("check saved = ONNX"):
            links.append(onnx_link(fold_batchnorm(graph), onnx, inputs))
    if mnn is not None:
        with progress.stage("check ONNX = MNN"):
            links.append(mnn_link(onnx, mnn, inputs))
    return Chain(tuple(links))
