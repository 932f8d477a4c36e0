"""Preparation of `irtool quantize`: the float file, the graph made ready for integers, the statistics of its activations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import torch
from onnx import ModelProto

from irtool import load_onnx, save_onnx
from irtool.engines import OnnxSession, export_onnx
from irtool.engines.engine import Engine
from irtool.engines.onnxruntime.calibrate import calibrate
from irtool.engines.onnxruntime.prepare import prepared, renewed
from irtool.hosts.onnx.graph import OnnxGraph
from irtool.hosts.torch.graph import FxGraph
from irtool.ir import Graph
from irtool.passes import Equalise, FoldBatchNorm, FoldConstants, FoldNormForward, LowerAffine, WidenSelects
from irtool.passmanager import Pipeline
from irtool.progress import Reporter
from irtool.quant import Statistics, place
from irtool.train import Status
from irtool.workflows.equality.chain import Chain, files_link
from irtool.workflows.equality.chain_inputs import takes_any_batch
from irtool.workflows.loading.arrays import AsStored
from irtool.workflows.loading.feeds import Feed
from irtool.workflows.quantize.calibration_images import Images


def metadata(images: Images) -> dict[str, str]:
    """Facts about its input for a program that runs the file."""
    stored = isinstance(images.preprocessing, AsStored)  # nothing is to be done to what is prepared already
    found = {} if stored else {"irtool.preprocessing": json.dumps(images.preprocessing.to_dict())}
    return found | ({"irtool.classes": json.dumps(list(images.classes))} if images.classes else {})


def write_float(graph: Graph, path: Path, described: Mapping[str, str], opset: int) -> None:
    """Write the model with its batch norms folded as ONNX, with facts about its input (`metadata`) in it."""
    folded = FoldBatchNorm()(graph).graph
    if isinstance(folded, OnnxGraph):
        save_onnx(folded, path)
        model = onnx.load(str(path))
        onnx.helper.set_model_props(model, {e.key: e.value for e in model.metadata_props} | dict(described))
        onnx.save(model, str(path))
        return
    traced = cast(FxGraph, folded)
    export_onnx(traced, path, opset=opset, dynamic_batch=takes_any_batch(traced), metadata=described)


def prepare(
    graph: Graph, source: Path, sample: np.ndarray, folder: Path, engine: Engine, equalise: bool, feed: Feed
) -> tuple[ModelProto, tuple[str, ...]]:
    """The float file with the passes that make int8 worth it, shown to compute the same."""
    file = folder / "prepared.onnx"
    shapes = [tuple(leaf.shape) for leaf in graph.example_inputs]
    passes = [FoldConstants(), FoldBatchNorm(), FoldNormForward(), WidenSelects(0.5)]
    passes += [LowerAffine()] if engine.int8.lowers else []
    done = Pipeline([*passes, *([Equalise()] if equalise else [])])(load_onnx(source, shapes))
    save_onnx(done.graph, file)
    model = prepared(renewed(onnx.load(str(file))))
    onnx.save(model, str(file))
    step = fixed_batch(source, feed)
    whole = sample if step is None else np.resize(sample, (step, *sample.shape[1:]))
    Chain((files_link(source, file, tuple(map(torch.from_numpy, feed(whole)))),)).require()
    file.unlink()
    return model, done.notes


def fixed_batch(path: Path, feed: Feed) -> int | None:
    """The batch that is written into a file; None if it is free."""
    return (OnnxSession(path).inputs[feed.place].shape or (None,))[0]


def calibrated(
    model: ModelProto, fixed: int | None, engine: Engine, images: Images, reporter: Reporter, feed: Feed
) -> Mapping[str, Statistics]:
    total = min(images.count, len(images.calibration))
    batches = images.batches(fixed or 32)
    whole = (feed(batch if fixed is None else np.resize(batch, (fixed, *batch.shape[1:]))) for batch in batches)
    return calibrate(
        model,
        place(model, engine.int8.policy).tensors,
        whole,
        threads=1,
        told=lambda done: reporter(Status("calibrate", min(done, total), total)),
    )
