"""The main job: plan, slice, fold, export, check each step, measure before and after. Used by `compress` and `demo`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch

from irtool.analysis.cost import cost
from irtool.archive import save
from irtool.engines import Session, TorchSession, export_onnx, latency_pairs
from irtool.engines.speed.stopwatch import clock_of
from irtool.engines.table import ENGINES, REFERENCE
from irtool.errors import GraphError
from irtool.hosts.torch.graph import FxGraph
from irtool.ir.graph import G, Graph
from irtool.nests import map_tensors, tensors_in
from irtool.passes import FoldBatchNorm
from irtool.passmanager import PassResult
from irtool.progress import Reporter
from irtool.pruning import Plan
from irtool.train import Data, evaluate
from irtool.train.evaluate import Evaluation
from irtool.workflows.compress.engine_files import FILES as ENGINE_FILES
from irtool.workflows.compress.engine_files import EngineFiles, engine_files
from irtool.workflows.compress.search import Found
from irtool.workflows.compress.search_report import plot_search, write_search
from irtool.workflows.compress.settings import Settings
from irtool.workflows.compress.smaller import Smaller, smaller
from irtool.workflows.equality.chain import (
    Chain,
    Link,
    folded_links,
    masked_links,
    onnx_link,
)
from irtool.workflows.equality.chain_inputs import chain_inputs, fitting_inputs, takes_any_batch
from irtool.workflows.folders.record import TIMED, Measured, Report
from irtool.workflows.folders.run_folder import GRAPHS, PAGE
from irtool.workflows.loading.models import MODEL_FILE

FILES: dict[str, str] = {
    "model": MODEL_FILE,
    "plan": "plan.json",
    **ENGINE_FILES,
    "report": "report.json",
    "graphs": GRAPHS,
    "page": PAGE,
}
SEARCH_FILES: dict[str, str] = {"search": "search.json", "plot": "search.png"}
"""Written too where what is lost was bounded."""
CHECK_IMAGES = 8
LATENCY_SECONDS = 5.0
"""For one engine, all models together."""


@dataclass(frozen=True)
class Built:
    """A model with its files, measured so far.

    Attributes:
        graph: the program.
        onnx: the ONNX file.
        others: what the other engines have of it.
        measured: all but latency.
    """

    graph: Graph
    onnx: Path
    others: EngineFiles
    measured: Measured

    @property
    def engines(self) -> tuple[str, ...]:
        """Engines that can run it, of those that models are timed in."""
        return tuple(name for name in TIMED if (isinstance(self.graph, FxGraph) if name == "torch" else name in self.files))

    @property
    def files(self) -> dict[str, Path]:
        """The file that each engine runs, by the engine's name."""
        return {**({} if self.graph.foreign else {REFERENCE.name: self.onnx}), **self.others.files}


@dataclass(frozen=True)
class Compressed:
    """The result of a compression: the smaller model, the plan behind it, the links that hold, the passes' notes, the files' names, the search."""

    built: Built
    plan: Plan
    chain: Chain
    notes: tuple[str, ...]
    files: Mapping[str, str] = field(default_factory=lambda: FILES)
    found: Found | None = None


def original(graph: FxGraph, data: Data | None, folder: Path, settings: Settings, left_out: Mapping[str, str], reporter: Reporter) -> Built:
    """Export and measure the model as it came.

    Args:
        folder: where its files go.
        left_out: engines that are not tried, by name, with the reason.
    """
    with reporter.stage("export the original"):
        onnx = _export(graph, folder, settings, {})
        inputs = fitting_inputs(graph, chain_inputs(graph.example_inputs))
        others = engine_files(onnx, inputs, left_out).without_wrong()
    return _measured(graph, data, onnx, others, {}, "evaluate the original", reporter)


def sliced_and_folded(
    graph: G, data: Data | None, settings: Settings, reporter: Reporter
) -> tuple[Smaller[G], tuple[Any, ...], PassResult[G], list[Link]]:
    """The rewrite of either host: plan, slice, fold, each step compared with the one before it.

    Returns:
        The plan, the inputs of the comparisons, the sliced and the folded graph, and the links of the chain so far.

    Raises:
        CheckError: a step is wrong.
        IrtoolError: a step cannot be taken.
    """
    made = smaller(graph, data, settings, reporter)
    plan, sliced, calibration = made.plan, made.sliced, made.calibration
    images = data.sample(CHECK_IMAGES) if data is not None else None
    inputs = fitting_inputs(graph, chain_inputs(graph.example_inputs, images))
    with reporter.stage("fold"):
        folded = FoldBatchNorm()(sliced.graph)
    with reporter.stage("check masked = sliced = folded"):
        links = [
            *masked_links(graph, plan, sliced.graph, inputs, settings.constants, calibration),
            *folded_links(sliced.graph, folded.graph, inputs),
        ]
        Chain(tuple(links)).require(unchecked=settings.unchecked)
    return made, inputs, folded, links


def compress_graph(graph: FxGraph, data: Data | None, folder: Path, settings: Settings, reporter: Reporter) -> Compressed:
    """Plan, slice, fold and export into `folder`; every step is compared with the one before it.

    Raises:
        CheckError: a step is wrong; nothing more is done.
        IrtoolError: a step cannot be taken.
    """
    made, inputs, folded, links = sliced_and_folded(graph, data, settings, reporter)
    with reporter.stage("export to ONNX"):
        onnx = _export(folded.graph, folder, settings, _metadata(data))
    with reporter.stage("convert for other engines, check folded = ONNX = engines"):
        others = engine_files(onnx, inputs)
        links += [onnx_link(folded.graph, onnx, inputs), *others.links]
        Chain(tuple(links)).require(unchecked=settings.unchecked)
    _save(made.sliced.graph, data, folder / FILES["model"])
    made.plan.to_json(folder / FILES["plan"])
    sizes = {"model": (folder / FILES["model"]).stat().st_size}
    built = _measured(folded.graph, data, onnx, others, sizes, "evaluate the result", reporter)
    baked = () if takes_any_batch(folded.graph) else ("the batch size is written into the model: its files take no other",)
    files = files_without(others)
    if made.found is not None and settings.bound is not None:
        write_search(made.found, settings.bound, folder / SEARCH_FILES["search"])
        plot_search(made.found, settings.bound, folder / SEARCH_FILES["plot"])
        files |= {kind: name for kind, name in SEARCH_FILES.items() if (folder / name).exists()}
    notes = (*graph.notes, *made.sliced.notes, *folded.notes, *baked, *others.notes)
    return Compressed(built, made.plan, Chain(tuple(links)), notes, files, made.found)


@dataclass(frozen=True)
class Timed:
    """A model with its times.

    Attributes:
        measured: all of it, with latency.
        ratios: by engine its time over the first model's.
        intervals: the 95 % intervals of these.
    """

    measured: Measured
    ratios: dict[str, float]
    intervals: dict[str, tuple[float, float]]


def timed(models: Sequence[Built], settings: Settings, reporter: Reporter) -> list[Timed]:
    """Time models against each other at batch 1, engine by engine, by the clock that suits the number of threads (`clock_of`)."""
    inputs, clock = _single(models[0].graph), clock_of(settings.threads)
    times: list[dict[str, float]] = [{} for _ in models]
    ratios: list[dict[str, float]] = [{} for _ in models]
    intervals: list[dict[str, tuple[float, float]]] = [{} for _ in models]
    runs = 0
    for engine in [engine for engine in TIMED if all(engine in model.engines for model in models)]:
        with reporter.stage(f"time {engine}"), torch_threads(settings.threads):
            sessions = [_session(engine, model, settings.threads) for model in models]
            found = latency_pairs(sessions, inputs, runs=settings.runs, seconds=LATENCY_SECONDS, clock=clock)
        for index, one in enumerate(zip(found.milliseconds, found.ratios, found.intervals, strict=True)):
            times[index][engine], ratios[index][engine], intervals[index][engine] = one
        runs = min(runs or settings.runs, found.latencies[0].runs)
    measured = [
        replace(model.measured, latency_ms=time, runs=runs, threads=settings.threads) for model, time in zip(models, times, strict=True)
    ]
    return [Timed(*parts) for parts in zip(measured, ratios, intervals, strict=True)]


def report_of(
    before: Measured,
    after: Measured,
    ratios: Mapping[str, float],
    done: Compressed,
    source: Mapping[str, Any],
    settings: Settings,
    data: Data | None,
    speed: tuple[str, ...] = (),
) -> Report:
    """Everything about one compressed model."""
    total = sum(layer.total for layer in done.plan.layers)
    options = {
        **(settings.plan if settings.given is None else _asked(done.plan)),
        "criterion": done.plan.criterion,
        "ratio": done.plan.ratio,
        "stages": done.plan.stages,
        "constants": settings.constants,
        "calibrate": settings.calibrate,
        "reconstruct": settings.reconstruct,
        "noise": data is None and any(step["step"] == "reconstruct" for step in done.built.graph.history),
        "distil": settings.distil,
        "opset": getattr(done.built.graph, "opset", settings.opset),  # an .onnx file keeps its own
    }
    options["ignore"] = list(options.get("ignore", ()))
    return Report(
        source=source,
        options=options,
        preprocessing=data.preprocessing.to_dict() if data is not None else None,
        classes=classes_of(data),
        tracer=done.built.graph.tracer,
        channels=(total, total - done.plan.removed),
        notes=done.notes,
        chain=done.chain,
        before=before,
        after=after,
        ratios=ratios,
        files=done.files,
        truth=data.truth if data is not None else "labels",
        speed=speed,
    )


def _asked(plan: Plan) -> dict[str, Any]:
    """The options that a plan from a file was made with, which are not those of the run that carries it out."""
    kept = ("scope", "residual", "min_channels", "round_to", "seed", "groups", "allocator", "ignore")
    return {name: getattr(plan, name) for name in kept} | {
        name: dict(value) for name in ("budget", "limits") if (value := getattr(plan, name))
    }


def files_without(others: EngineFiles) -> dict[str, str]:
    """The names of what is written, by kind: without the files of engines that were left out."""
    own = {row.kind for row in ENGINES.values() if row.convert is not None}
    made = {ENGINES[name].kind for name in others.files}
    return {kind: name for kind, name in FILES.items() if kind not in own or kind in made}


def _export(graph: FxGraph, folder: Path, settings: Settings, metadata: Mapping[str, str]) -> Path:
    onnx = folder / FILES["onnx"]
    export_onnx(graph, onnx, opset=settings.opset, dynamic_batch=takes_any_batch(graph), metadata=metadata)
    return onnx


def _measured(
    graph: FxGraph, data: Data | None, onnx: Path, others: EngineFiles, sizes: Mapping[str, int], task: str, reporter: Reporter
) -> Built:
    score = evaluate(graph, data, progress=reporter, task=task) if data is not None and data.truth != "none" else None
    return as_built(graph, onnx, others, score, {**sizes, "onnx": onnx.stat().st_size, **others.sizes()})


def as_built(graph: Graph, onnx: Path, others: EngineFiles, score: Evaluation | None, sizes: Mapping[str, int]) -> Built:
    """Put together what is known of a model with its files; `score` is None without labels, `sizes` are bytes by kind of file."""
    found = cost(graph)
    measured = Measured(
        params=found.params,
        macs=found.macs,
        weight_bytes=found.weight_bytes,
        accuracy=score.accuracy if score is not None else None,
        images=score.count if score is not None else 0,
        file_bytes=sizes,
    )
    return Built(graph, onnx, others, measured)


def _save(sliced: FxGraph, data: Data | None, path: Path) -> None:
    """Not the folded graph: with its batch norms it is what one trains on, and folding it again is cheap and checked."""
    preprocessing = data.preprocessing.to_dict() if data is not None else None
    save(sliced, path, preprocessing=preprocessing, metadata={"classes": list(classes_of(data))})


def _metadata(data: Data | None) -> dict[str, str]:
    """Facts about its input for a program that runs the ONNX file."""
    if data is None:
        return {}
    return {"irtool.preprocessing": json.dumps(data.preprocessing.to_dict()), **_named(data)}


def _named(data: Data) -> dict[str, str]:
    classes = classes_of(data)
    return {"irtool.classes": json.dumps(list(classes))} if classes else {}


def classes_of(data: Data | None) -> tuple[str, ...]:
    """The names of classes, where labels are given ones: a model's own answers have none."""
    return data.classes if data is not None and data.truth == "labels" else ()


def _single(graph: Graph) -> list[Any]:
    """Inputs for one run: the first sample of the example, or the whole example where its batch is baked in."""
    one = map_tensors(graph.example_inputs, lambda tensor: tensor[:1] if tensor.dim() else tensor)
    try:
        graph.run(*one)
    except (RuntimeError, ValueError, AssertionError, GraphError):
        one = graph.example_inputs
    return [tensor.numpy() for tensor in tensors_in(one)]


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """torch has one number of threads for the whole process."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _session(engine: str, model: Built, threads: int) -> Session:
    return TorchSession(cast(FxGraph, model.graph)) if engine == "torch" else ENGINES[engine].session(model.files[engine], threads)
