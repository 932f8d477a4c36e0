"""The main job: plan, slice, fold, export, check each step, measure before and after. Used by `compress` and `demo`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import irtool
from irtool.analysis.cost import cost
from irtool.archive import save
from irtool.cli.screen import Screen
from irtool.engines import MnnSession, OnnxSession, Session, TorchSession, export_mnn, export_onnx, latency_pairs
from irtool.errors import GraphError, OptionError
from irtool.hosts.torch.graph import FxGraph
from irtool.hosts.torch.modules import map_tensors
from irtool.ir.graph import G, Graph
from irtool.passes import FoldBatchNorm, Prune, Reconstruct
from irtool.passes.prune import Constants
from irtool.passmanager import PassResult
from irtool.pruning import CRITERIA, Plan
from irtool.train import Data, evaluate
from irtool.workflows.chain import (
    Chain,
    Link,
    chain_inputs,
    fitting_inputs,
    folded_links,
    masked_links,
    mnn_link,
    onnx_link,
    takes_any_batch,
)
from irtool.workflows.models import MODEL_FILE, ONNX_FILE
from irtool.workflows.record import ENGINES, Measured, Report
from irtool.workflows.run_folder import GRAPHS, PAGE

FILES = {
    "model": MODEL_FILE,
    "plan": "plan.json",
    "onnx": ONNX_FILE,
    "mnn": "model.mnn",
    "report": "report.json",
    "graphs": GRAPHS,
    "page": PAGE,
}
CHECK_IMAGES = 8
SEEN = 512
"""Training images that a criterion looks at unless told otherwise."""
LATENCY_SECONDS = 5.0
"""For one engine, all models together."""


@dataclass(frozen=True)
class Settings:
    """How to compress.

    Attributes:
        plan: arguments of `irtool.plan`.
        constants: see `prune`.
        calibrate: training images to measure removed channels' means on; 0: batch norm's statistics tell.
        reconstruct: training images, without their labels, to refit every layer on after slicing (`constants` and `calibrate`
            have no say then); 0: none.
        opset: of the ONNX file.
        runs: timed runs of each model in each engine.
        threads: of each engine while it is timed. One is the default: what several gain depends on what else the machine
            does, and a small net gains little.
        unchecked: accept steps that have no reference in numbers, on the proof by labels alone.
    """

    plan: Mapping[str, Any] = field(default_factory=dict)
    constants: Constants = "absorb"
    calibrate: int = 0
    reconstruct: int = 0
    opset: int = 17
    runs: int = 50
    threads: int = 1
    unchecked: bool = False


@dataclass(frozen=True)
class Built:
    """A model with its files, measured so far.

    Attributes:
        graph: the program.
        onnx, mnn: the exported files; no MNN file where MNN cannot run an ONNX file's operators.
        measured: all but latency.
    """

    graph: Graph
    onnx: Path
    mnn: Path | None
    measured: Measured

    @property
    def engines(self) -> tuple[str, ...]:
        """What can run it."""
        able = {"torch": isinstance(self.graph, FxGraph), "onnxruntime": True, "mnn": self.mnn is not None}
        return tuple(engine for engine in ENGINES if able[engine])


@dataclass(frozen=True)
class Compressed:
    """What a compression made: the smaller model, the plan behind it, the links that hold, the passes' notes, the files' names."""

    built: Built
    plan: Plan
    chain: Chain
    notes: tuple[str, ...]
    files: Mapping[str, str] = field(default_factory=lambda: FILES)


def original(graph: FxGraph, data: Data | None, folder: Path, settings: Settings, screen: Screen) -> Built:
    """Export and measure the model as it came.

    Args:
        folder: where its ONNX and MNN files go.
    """
    with screen.stage("export the original"):
        paths = _export(graph, folder, settings, {})
    return _measured(graph, data, *paths, {}, "evaluate the original", screen)


def sliced_and_folded(
    graph: G, data: Data | None, settings: Settings, screen: Screen
) -> tuple[Plan, tuple[Any, ...], PassResult[G], PassResult[G], list[Link]]:
    """The rewrite of either host: plan, slice, fold, each step compared with the one before it.

    Returns:
        The plan, the inputs of the comparisons, the sliced and the folded graph, and the links of the chain so far.

    Raises:
        CheckError: a step is wrong.
        IrtoolError: a step cannot be taken.
    """
    with screen.stage("plan"):
        plan = irtool.plan(graph, **{**settings.plan, **_scored(graph, data, settings)})
    images = data.sample(CHECK_IMAGES) if data is not None else None
    inputs = fitting_inputs(graph, chain_inputs(graph.example_inputs, images))
    calibration = calibration_batches(graph, data, settings.reconstruct or settings.calibrate)
    with screen.stage("prune and fold"):
        if settings.reconstruct and calibration is not None:
            sliced = Reconstruct(plan, calibration, progress=screen)(graph)
        else:
            sliced = Prune(plan, settings.constants, calibration)(graph)
        folded = FoldBatchNorm()(sliced.graph)
    with screen.stage("check masked = sliced = folded"):
        links = [
            *masked_links(graph, plan, sliced.graph, inputs, settings.constants, calibration),
            *folded_links(sliced.graph, folded.graph, inputs),
        ]
        Chain(tuple(links)).require(unchecked=settings.unchecked)
    return plan, inputs, sliced, folded, links


def _scored(graph: Graph, data: Data | None, settings: Settings) -> dict[str, Any]:
    """The criterion, and the images that it looks at if it does."""
    name = settings.plan.get("criterion")
    if name is None:
        sees = data is not None and graph.trainable and settings.plan.get("budget") is not None
        name = "fisher" if sees else "l1"
    if CRITERIA[name].reads == "parameters":
        return {"criterion": name}
    if data is None:
        raise OptionError(f"{name} looks at images, and no --data", where="--criterion", remedy="Give --data too, or choose l1.")
    return {"criterion": name, "data": calibration_batches(graph, data, settings.calibrate or SEEN)}


def calibration_batches(graph: Graph, data: Data | None, count: int) -> list[tuple[Tensor]] | None:
    """Training images to measure means on, in batches that the graph takes; None if none are asked for."""
    if data is None or not count:
        return None
    images = data.sample(count)
    whole = fitting_inputs(graph, (images,))
    step = len(images) if whole[0] is images else len(graph.example_inputs[0])
    return [(batch,) for batch in images.split(step) if len(batch) == step]


def compress_graph(graph: FxGraph, data: Data | None, folder: Path, settings: Settings, screen: Screen) -> Compressed:
    """Plan, slice, fold and export into `folder`; every step is compared with the one before it.

    Raises:
        CheckError: a step is wrong; nothing more is done.
        IrtoolError: a step cannot be taken.
    """
    plan, inputs, sliced, folded, links = sliced_and_folded(graph, data, settings, screen)
    with screen.stage("export to ONNX and MNN"):
        onnx, mnn = _export(folded.graph, folder, settings, _metadata(data))
    with screen.stage("check folded = ONNX = MNN"):
        links += [onnx_link(folded.graph, onnx, inputs), mnn_link(onnx, mnn, inputs)]
        Chain(tuple(links)).require(unchecked=settings.unchecked)
    _save(sliced.graph, data, folder / FILES["model"])
    plan.to_json(folder / FILES["plan"])
    sizes = {"model": (folder / FILES["model"]).stat().st_size}
    built = _measured(folded.graph, data, onnx, mnn, sizes, "evaluate the result", screen)
    baked = () if takes_any_batch(folded.graph) else ("the batch size is written into the model: its files take no other",)
    return Compressed(built, plan, Chain(tuple(links)), (*graph.notes, *sliced.notes, *folded.notes, *baked))


def timed(models: Sequence[Built], settings: Settings, screen: Screen) -> tuple[list[Measured], list[dict[str, float]]]:
    """Time models against each other at batch 1, engine by engine.

    Returns:
        Each model's measurements with latency, and by engine its time over the first model's.
    """
    inputs = _single(models[0].graph)
    times: list[dict[str, float]] = [{} for _ in models]
    ratios: list[dict[str, float]] = [{} for _ in models]
    runs = 0
    for engine in [engine for engine in ENGINES if all(engine in model.engines for model in models)]:
        with screen.stage(f"time {engine}"), torch_threads(settings.threads):
            sessions = [_session(engine, model, settings.threads) for model in models]
            found = latency_pairs(sessions, inputs, runs=settings.runs, seconds=LATENCY_SECONDS)
        for index, (one, ratio) in enumerate(zip(found.latencies, found.ratios, strict=True)):
            times[index][engine], ratios[index][engine] = one.median_ms, ratio
            runs = one.runs if not runs else min(runs, one.runs)
    return [
        replace(model.measured, latency_ms=time, runs=runs, threads=settings.threads) for model, time in zip(models, times, strict=True)
    ], ratios


def report_of(
    before: Measured,
    after: Measured,
    ratios: Mapping[str, float],
    done: Compressed,
    source: Mapping[str, Any],
    settings: Settings,
    data: Data | None,
) -> Report:
    """Everything about one compressed model."""
    total = sum(layer.total for layer in done.plan.layers)
    options = {
        **settings.plan,
        "criterion": done.plan.criterion,
        "ratio": done.plan.ratio,
        "constants": settings.constants,
        "calibrate": settings.calibrate,
        "reconstruct": settings.reconstruct,
        "opset": settings.opset,
    }
    options["ignore"] = list(options.get("ignore", ()))
    return Report(
        source=source,
        options=options,
        preprocessing=data.preprocessing.to_dict() if data is not None else None,
        classes=data.classes if data is not None else (),
        tracer=done.built.graph.tracer,
        channels=(total, total - done.plan.removed),
        notes=done.notes,
        chain=done.chain,
        before=before,
        after=after,
        ratios=ratios,
        files=done.files,
    )


def _export(graph: FxGraph, folder: Path, settings: Settings, metadata: Mapping[str, str]) -> tuple[Path, Path]:
    onnx, mnn = folder / FILES["onnx"], folder / FILES["mnn"]
    export_onnx(graph, onnx, opset=settings.opset, dynamic_batch=takes_any_batch(graph), metadata=metadata)
    export_mnn(onnx, mnn)
    return onnx, mnn


def _measured(graph: FxGraph, data: Data | None, onnx: Path, mnn: Path, sizes: Mapping[str, int], task: str, screen: Screen) -> Built:
    found = cost(graph)
    score = evaluate(graph, data, progress=screen, task=task) if data is not None else None
    measured = Measured(
        params=found.params,
        macs=found.macs,
        weight_bytes=found.weight_bytes,
        accuracy=score.accuracy if score is not None else None,
        images=score.count if score is not None else 0,
        file_bytes={**sizes, "onnx": onnx.stat().st_size, "mnn": mnn.stat().st_size},
    )
    return Built(graph, onnx, mnn, measured)


def _save(sliced: FxGraph, data: Data | None, path: Path) -> None:
    """Not the folded graph: with its batch norms it is what one trains on, and folding it again is cheap and checked."""
    preprocessing = data.preprocessing.to_dict() if data is not None else None
    save(sliced, path, preprocessing=preprocessing, metadata={"classes": list(data.classes) if data is not None else []})


def _metadata(data: Data | None) -> dict[str, str]:
    """What a program that runs the ONNX file must know about its input."""
    if data is None:
        return {}
    return {"irtool.preprocessing": json.dumps(data.preprocessing.to_dict()), "irtool.classes": json.dumps(list(data.classes))}


def _single(graph: Graph) -> list[Any]:
    """Inputs for one run: the first sample of the example, or the whole example where its batch is baked in."""
    one = map_tensors(graph.example_inputs, lambda tensor: tensor[:1])
    try:
        graph.run(*one)
    except (RuntimeError, ValueError, GraphError):
        one = graph.example_inputs
    return [leaf.numpy() for leaf in pytree.tree_leaves(one) if isinstance(leaf, torch.Tensor)]


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
    makers: dict[str, Callable[[], Session]] = {
        "torch": lambda: TorchSession(cast(FxGraph, model.graph)),
        "onnxruntime": lambda: OnnxSession(model.onnx, threads),
        "mnn": lambda: MnnSession(cast(Path, model.mnn), threads),
    }
    return makers[engine]()
