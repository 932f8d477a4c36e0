"""The main job for an .onnx file: plan, slice, fold, write, convert to MNN, check each step, measure before and after.

All is run by onnxruntime in the float32 that the file is made for. MNN is left out, with the reason, if it cannot run the
original; a file whose original it runs must stay one that it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from irtool.analysis.cost import cost
from irtool.engines import OnnxSession, export_mnn
from irtool.engines.session import Session
from irtool.errors import BackendError, ExportError
from irtool.hosts.onnx.graph import OnnxGraph
from irtool.hosts.onnx.load import save_onnx
from irtool.progress import Reporter
from irtool.train import Data, evaluate
from irtool.workflows.chain import Chain, Link, chain_inputs, fitting_inputs, mnn_link, onnx_link
from irtool.workflows.compress import FILES, Built, Compressed, sliced_and_folded
from irtool.workflows.compress_settings import Settings
from irtool.workflows.record import Measured

BATCH = 64
"""Images at a time, where the file leaves the batch free."""
_FILES = {kind: name for kind, name in FILES.items() if kind != "model"}


def original_onnx(graph: OnnxGraph, source: Path, data: Data | None, folder: Path, reporter: Reporter) -> tuple[Built, str]:
    """Measure the model as it came; also why there is no MNN file, else "".

    Args:
        source: its own file.
        folder: where its MNN file goes.
    """
    mnn, reason = folder / FILES["mnn"], ""
    with reporter.stage("convert the original to MNN"):
        try:
            link = to_mnn(source, mnn, fitting_inputs(graph, chain_inputs(graph.example_inputs)))
            reason = "" if link.ok else f"MNN's numbers differ from onnxruntime's by {link.relative:.0e} of the largest output"
        except (ExportError, BackendError) as error:
            reason = error.what
    return _measured(graph, data, source, None if reason else mnn, "evaluate the original", reporter), reason


def compress_onnx(graph: OnnxGraph, data: Data | None, folder: Path, settings: Settings, no_mnn: str, reporter: Reporter) -> Compressed:
    """Plan, slice, fold and write into `folder`; every step is compared with the one before it.

    Args:
        no_mnn: why MNN is left out; empty if it is not.

    Raises:
        CheckError: a step is wrong; nothing more is done.
        IrtoolError: a step cannot be taken.
    """
    made, inputs, folded, links = sliced_and_folded(graph, data, settings, reporter)
    path = folder / FILES["onnx"]
    with reporter.stage("write ONNX" if no_mnn else "write ONNX and MNN"):
        save_onnx(folded.graph, path)
        links.append(onnx_link(folded.graph, path, inputs))
        if not no_mnn:
            links.append(to_mnn(path, folder / FILES["mnn"], inputs))
        Chain(tuple(links)).require(unchecked=settings.unchecked)
    made.plan.to_json(folder / FILES["plan"])
    built = _measured(folded.graph, data, path, None if no_mnn else folder / FILES["mnn"], "evaluate the result", reporter)
    left_out = (f"no MNN file: {no_mnn}",) if no_mnn else ()
    files = {kind: name for kind, name in _FILES.items() if kind != "mnn" or not no_mnn}
    return Compressed(built, made.plan, Chain(tuple(links)), (*graph.notes, *made.sliced.notes, *folded.notes, *left_out), files)


def to_mnn(onnx: Path, mnn: Path, inputs: tuple[Any, ...]) -> Link:
    """Convert a file to MNN and compare the two."""
    export_mnn(onnx, mnn, verify=False)  # the link says more about a difference than the export would
    return mnn_link(onnx, mnn, inputs)


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


def _measured(graph: OnnxGraph, data: Data | None, onnx: Path, mnn: Path | None, task: str, reporter: Reporter) -> Built:
    found = cost(graph)
    score = None
    if data is not None and not graph.foreign and data.truth != "none":
        score = evaluate(classifier(OnnxSession(onnx)), data, BATCH, progress=reporter, task=task)
    weights = onnx.with_name(f"{onnx.name}.data")
    sizes = {"onnx": onnx.stat().st_size + (weights.stat().st_size if weights.exists() else 0)}
    if mnn is not None:
        sizes["mnn"] = mnn.stat().st_size
    measured = Measured(
        params=found.params,
        macs=found.macs,
        weight_bytes=found.weight_bytes,
        accuracy=score.accuracy if score is not None else None,
        images=score.count if score is not None else 0,
        file_bytes=sizes,
    )
    return Built(graph, onnx, mnn, measured)
