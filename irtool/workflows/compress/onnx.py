"""The main job for an .onnx file: plan, slice, fold, write, convert for engines, check each step, measure before and after.

All is run by onnxruntime in the float32 that the file is made for. Another engine is left out, with the reason, if it cannot run
the original; a file whose original it runs must stay one that it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from irtool.engines import OnnxSession
from irtool.engines.session import Session
from irtool.hosts.onnx.files.load import save_onnx
from irtool.hosts.onnx.graph import OnnxGraph
from irtool.progress import Reporter
from irtool.train import Data, evaluate
from irtool.workflows.compress.built import FILES, Built, Compressed, as_built, files_without, sliced_and_folded
from irtool.workflows.compress.engine_files import EngineFiles, engine_files
from irtool.workflows.compress.settings import Settings
from irtool.workflows.equality.chain import Chain, onnx_link
from irtool.workflows.equality.chain_inputs import chain_inputs, fitting_inputs

BATCH = 64
"""Images at a time, where the file leaves the batch free."""


def original_onnx(graph: OnnxGraph, source: Path, data: Data | None, folder: Path, reporter: Reporter) -> Built:
    """Measure the model as it came, with the files of the engines that run it.

    Args:
        source: its own file.
        folder: where the engines' files go.
    """
    with reporter.stage("convert the original for other engines"):
        inputs = fitting_inputs(graph, chain_inputs(graph.example_inputs))
        others = engine_files(source, inputs, folder=folder).without_wrong()
    return _measured(graph, data, source, others, "evaluate the original", reporter)


def compress_onnx(
    graph: OnnxGraph, data: Data | None, folder: Path, settings: Settings, left_out: Mapping[str, str], reporter: Reporter
) -> Compressed:
    """Plan, slice, fold and write into `folder`; every step is compared with the one before it.

    Args:
        left_out: by name, why engines are left out: they do not run the original.

    Raises:
        CheckError: a step is wrong; nothing more is done.
        IrtoolError: a step cannot be taken.
    """
    made, inputs, folded, links = sliced_and_folded(graph, data, settings, reporter)
    path = folder / FILES["onnx"]
    with reporter.stage("write ONNX and the files of other engines"):
        save_onnx(folded.graph, path)
        links.append(onnx_link(folded.graph, path, inputs))
        others = engine_files(path, inputs, left_out, require=True)
        links += others.links
        Chain(tuple(links)).require(unchecked=settings.unchecked)
    made.plan.to_json(folder / FILES["plan"])
    built = _measured(folded.graph, data, path, others, "evaluate the result", reporter)
    files = {kind: name for kind, name in files_without(others).items() if kind != "model"}
    notes = (*graph.notes, *made.sliced.notes, *folded.notes, *others.notes)
    return Compressed(built, made.plan, Chain(tuple(links)), notes, files)


def classifier(session: Session, batch: int | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """An engine as a function from any number of images to their scores, (images, classes).

    Args:
        session: an engine with a model.
        batch: the batch that is written into the model, where the engine does not know (MNN does not).
    """
    fixed = batch or (session.inputs[0].shape or (None,))[0]

    def run(images: np.ndarray) -> np.ndarray:
        step, parts = fixed or len(images), []
        for start in range(0, len(images), step):
            batch = images[start : start + step]
            padded = np.concatenate([batch, np.repeat(batch[-1:], step - len(batch), axis=0)])
            scores = session.run(padded)[0][: len(batch)]
            parts.append(scores.reshape(scores.shape[:2]) if scores.ndim > 2 and set(scores.shape[2:]) == {1} else scores)
        return np.concatenate(parts)

    return run


def _measured(graph: OnnxGraph, data: Data | None, onnx: Path, others: EngineFiles, task: str, reporter: Reporter) -> Built:
    score = None
    if data is not None and not graph.foreign and data.truth != "none":
        score = evaluate(classifier(OnnxSession(onnx)), data, BATCH, progress=reporter, task=task)
    weights = onnx.with_name(f"{onnx.name}.data")
    sizes = {"onnx": onnx.stat().st_size + (weights.stat().st_size if weights.exists() else 0), **others.sizes()}
    return as_built(graph, onnx, others, score, sizes)
