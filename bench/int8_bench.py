"""The int8 files of one model and what they score: used by bench/int8_schemes.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import torch

import irtool
import irtool.engines.mnn.int8_form
from irtool.engines import MnnSession, OnnxSession, Session, export_mnn, export_onnx, latency_pairs
from irtool.engines.mnn.account import mnn_account
from irtool.engines.mnn.int8 import export_mnn_int8
from irtool.engines.mnn.layers import mnn_operators, mnn_scaled
from irtool.engines.mnn.profile import mnn_profile, mnn_times
from irtool.engines.mnn.quantizer import mnn_own_int8
from irtool.engines.onnxruntime.calibrate import calibrate
from irtool.engines.onnxruntime.prepare import prepared
from irtool.engines.onnxruntime.profile import operator_times
from irtool.engines.onnxruntime.qdq import to_qdq
from irtool.engines.table import ENGINES
from irtool.passes import Equalise, LowerAffine, WidenSelects
from irtool.quant import Placement, Scheme, Statistics, make_recipe, observe, place
from irtool.quant.affine import grid
from irtool.quant.boundaries import account
from irtool.quant.placement import DefUse, rectified
from irtool.train import Data, Preprocessing

SESSIONS: dict[str, Callable[[Path, int], Session]] = {".onnx": OnnxSession, ".mnn": MnnSession}
ROWS = {"onnx": ENGINES["onnxruntime"], "mnn": ENGINES["mnn"]}
"""By the suffix of their files."""
DEFAULTS = {kind: row.int8.scheme for kind, row in ROWS.items()}
TITLES = {"onnx": "onnxruntime", "mnn": "MNN"}


def _passed(graph: irtool.OnnxGraph, engine: str, least: float) -> irtool.OnnxGraph:
    """As `irtool quantize` prepares a graph; selections of less than a share of the channels stay."""
    widened = WidenSelects(least)(graph).graph
    return LowerAffine()(widened).graph if ROWS[engine].int8.lowers else widened


# What the passes make of the exported graph, for an engine.
GRAPHS: dict[str, Callable[[irtool.OnnxGraph, str], irtool.OnnxGraph]] = {
    "as exported": lambda graph, engine: graph,
    "passed": lambda graph, engine: _passed(graph, engine, 0.5),
    "all widened": lambda graph, engine: _passed(graph, engine, 0.0),
    "norms as convolutions": lambda graph, engine: LowerAffine()(_passed(graph, engine, 0.5)).graph,
    "all widened, norms as convolutions": lambda graph, engine: LowerAffine()(_passed(graph, engine, 0.0)).graph,
    "equalised": lambda graph, engine: Equalise()(_passed(graph, engine, 0.5)).graph,
}
# How uint8 images (N, C, H, W) become inputs: right, and with the mistakes that a wrong order makes.
ORDERS: dict[str, Callable[[torch.Tensor, Preprocessing], torch.Tensor]] = {
    "right": lambda images, pre: pre.normalise(images),
    "scales in BGR order": lambda images, pre: replace(pre, std=pre.std[::-1]).normalise(images),
    "images in BGR order": lambda images, pre: pre.normalise(images.flip(1)),
    "means and scales exchanged": lambda images, pre: replace(pre, mean=pre.std, std=pre.mean).normalise(images),
}


@dataclass(frozen=True)
class Trial:
    """One int8 file of a scheme.

    Attributes:
        changes: what differs from the default scheme.
        graph: a key of `GRAPHS`.
        calibrated, scored: keys of `ORDERS`.
        one_scale: whether tensors that meet in an addition or a concat have one scale.
        int8_joins: whether additions are left to MNN, which then runs them in int8.
        engines: those for which it can be made.
    """

    changes: Mapping[str, Any]
    graph: str = "passed"
    calibrated: str = "right"
    scored: str = "right"
    one_scale: bool = False
    int8_joins: bool = False
    engines: tuple[str, ...] = ("onnx", "mnn")


class Bench:
    """A model and its files in a folder.

    Args:
        graph: folded.
        data: scored with its test images, calibrated with its training images; without, images are noise and nothing is scored.
        folder: for the files.
        shape: of the input, batch 1.
        calibration, images: how many images.
    """

    def __init__(
        self, graph: irtool.FxGraph, data: Data | None, folder: Path, shape: tuple[int, ...], calibration: int, images: int
    ) -> None:
        self.folder, self.data, self.shape = folder, data, shape
        export_onnx(graph, folder / "float.onnx")
        export_mnn(folder / "float.onnx", folder / "float.mnn")
        if data is None:
            self.pixels = torch.randint(0, 256, (64, *shape[1:]), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
            self.preprocessing = Preprocessing((0.5,) * shape[1], (0.25,) * shape[1], (shape[2], shape[3]), shape[1])
            return
        self.preprocessing = data.preprocessing
        pre = data.preprocessing
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (pre.mean, pre.std))
        self.pixels = ((data.sample(calibration) * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        chosen = np.random.default_rng(0).permutation(len(data.test))[:images]
        index = torch.from_numpy(np.sort(chosen))
        self.labels = data.test.labels[index].numpy()
        self.test = next(iter(data.test.batches([index])))

    @cache  # noqa: B019  # a bench lives as long as its model is measured
    def model(self, graph: str, engine: str) -> onnx.ModelProto:
        """The float model as a row of `GRAPHS` makes it."""
        path = self.folder / f"{graph}.{engine}.float.onnx"
        irtool.save_onnx(GRAPHS[graph](irtool.load_onnx(self.folder / "float.onnx", [self.shape]), engine), path)
        return prepared(onnx.load(str(path)))

    @cache  # noqa: B019
    def stats(self, graph: str, engine: str, order: str) -> Mapping[str, Statistics]:
        """Of the calibration images."""
        model = self.model(graph, engine)
        names = place(model, ROWS[engine].int8.policy).tensors
        batches = [ORDERS[order](part, self.preprocessing).numpy() for part in self.pixels.split(32)]
        return calibrate(model, names, batches, threads=1)

    def write(self, engine: str, trial: Trial, name: str = "trial") -> Path:
        """The int8 file of a trial."""
        model, stats, scheme = (
            self.model(trial.graph, engine),
            self.stats(trial.graph, engine, trial.calibrated),
            replace(DEFAULTS[engine], **trial.changes),
        )
        placement, path = place(model, ROWS[engine].int8.policy), self.folder / f"{name}.{engine}"
        if trial.one_scale:
            placement = with_one_scale(model, placement, stats, scheme)
        recipe = make_recipe(model, placement, stats, scheme)
        if engine == "onnx":
            onnx.save(to_qdq(model, recipe), str(path))
        else:
            with patch.object(irtool.engines.mnn.int8_form, "JOINS", frozenset()) if trial.int8_joins else nullcontext():
                export_mnn_int8(model, recipe, path)
        return path

    def own(self, method: str, order: str = "right", name: str = "own") -> Path:
        """MNN's own int8 file."""
        pre, path = self.preprocessing, self.folder / f"{name}.mnn"
        pixels = self.pixels.flip(1) if order == "images in BGR order" else self.pixels
        orders = {"scales in BGR order": (pre.mean, pre.std[::-1]), "means and scales exchanged": (pre.std, pre.mean)}
        mnn_own_int8(self.folder / "float.mnn", path, pixels.numpy(), *orders.get(order, (pre.mean, pre.std)), method=method)
        return path

    def accuracy(self, path: Path, images: int | None = None, order: str = "right") -> float | None:
        """Per cent of the test images, or of so many of them, evenly spread."""
        if self.data is None:
            return None
        session, right = SESSIONS[path.suffix](path, 1), 0
        chosen = np.linspace(0, len(self.labels) - 1, min(images or len(self.labels), len(self.labels))).astype(int)
        for start in range(0, len(chosen), 100):
            some = chosen[start : start + 100]
            x = ORDERS[order](self.test[some], self.preprocessing).numpy()
            right += int((session.run(x)[0].argmax(1) == self.labels[some]).sum())
        return 100 * right / len(chosen)

    def files(self) -> dict[str, Path]:
        """The files of the main table, by row."""
        found = {"onnxruntime, float": self.folder / "float.onnx", "MNN, float": self.folder / "float.mnn"}
        for engine, title in TITLES.items():
            found[f"{title}, int8, graph as it was"] = self.write(engine, Trial({}, "as exported"), "plain8")
            found[f"{title}, int8, one scale a stream"] = self.write(engine, Trial({}, one_scale=True), "one_scale8")
            found[f"{title}, int8"] = self.write(engine, Trial({}), "int8")
        found["MNN, int8, norms as convolutions"] = self.write("mnn", Trial({}, "norms as convolutions"), "norms8")
        found["MNN, int8, all widened"] = self.write("mnn", Trial({}, "all widened"), "wide8")
        for title, joins in {"": False, ", additions in int8": True}.items():
            trial = Trial({}, "all widened, norms as convolutions", int8_joins=joins)
            found[f"MNN, int8, {trial.graph}{title}"] = self.write("mnn", trial, f"wide_norms8{joins}")
        if self.data is not None:
            found |= {f"MNN's own {method}": self.own(method, name=f"own_{method}") for method in ("KL", "EMA")}
        found["MNN, 8-bit weights alone"] = self.folder / "weights8.mnn"
        export_mnn(self.folder / "float.onnx", found["MNN, 8-bit weights alone"], weight_bits=8)
        return found

    def latency(self, files: Mapping[str, Path], threads: int, seconds: float) -> dict[str, dict[str, float]]:
        """Median and ratio to float, engine by engine."""
        found: dict[str, dict[str, float]] = {}
        for suffix, session in SESSIONS.items():
            rows = {name: path for name, path in files.items() if path.suffix == suffix}
            pairs = latency_pairs([session(path, threads) for path in rows.values()], [self.one()], runs=100000, seconds=seconds)
            for name, one, ratio in zip(rows, pairs.latencies, pairs.ratios, strict=True):
                found[name] = {"median_ms": one.median_ms, "p10_ms": one.p10_ms, "ratio": ratio, "rounds": one.runs}
        return found

    def passes(self) -> dict[str, dict[str, Any]]:
        """Effects of the passes on the graph: operators in MNN, steps between float and int8, bytes of the int8 files."""
        found = {}
        for name in ("as exported", "passed", "all widened"):
            model, files = self.model(name, "onnx"), {engine: self.write(engine, Trial({}, name)) for engine in DEFAULTS}
            accounts = {"onnx": account(model, place(model)), "mnn": mnn_account(mnn_profile(files["mnn"], self.one(), runs=1))}
            found[name] = {
                "mnn_operators": len(mnn_operators(self.folder / f"{name}.mnn.float.onnx")),
                "steps": {engine: len(accounts[engine].steps) for engine in DEFAULTS},
                "bytes": {engine: path.stat().st_size for engine, path in files.items()},
            }
        return found

    def one(self) -> np.ndarray:
        """The input of one run."""
        return ORDERS["right"](self.pixels[:1], self.preprocessing).numpy()

    def profile(self, path: Path) -> dict[str, float]:
        """Milliseconds by kind of operator."""
        return operator_times(path, [self.one()]) if path.suffix == ".onnx" else mnn_times(path, self.one(), runs=100)


def scaled_kinds(path: Path) -> dict[str, int]:
    """How many tensors of an MNN file have int8 scales, by the operator that makes them."""
    kinds = [kind for kind, _ in mnn_scaled(path)]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def with_one_scale(model: onnx.ModelProto, placement: Placement, stats: Mapping[str, Statistics], scheme: Scheme) -> Placement:
    """A placement in which all tensors that meet in additions and concats have the scale of the widest of them."""
    wiring, meets = DefUse(model), []
    for index in placement.integer:
        node = wiring.nodes[index]
        if node.op_type in ("Add", "Concat"):
            names = [*wiring.data_inputs(node), rectified(wiring, node.output[0])]
            meets.append({placement.tensors[name] for name in names if name in placement.tensors})
    kind = grid(scheme.activations, scheme.symmetric)
    owners = {name: name for name in placement.observed}
    for group in _united(meets):
        widest = max(sorted(group), key=lambda name: observe(stats[name], scheme.method, kind).scale)
        owners |= dict.fromkeys(group, widest)
    return replace(placement, tensors={name: owners[source] for name, source in placement.tensors.items()})


def _united(sets: Sequence[set[str]]) -> list[set[str]]:
    """Sets that share a member become one."""
    found: list[set[str]] = []
    for group in sets:
        apart = [other for other in found if not other & group]
        found = [*apart, group.union(*(other for other in found if other & group))]
    return found
