"""The work of `irtool quantize`: prepare, calibrate, write, score, and leave layers in float until the accuracy holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import ModelProto

from irtool.engines import OnnxSession, latency_pairs
from irtool.engines.engine import Engine
from irtool.engines.table import ENGINES
from irtool.errors import CheckError, OptionError
from irtool.ir import Graph
from irtool.progress import Reporter
from irtool.quant import Placement, Scheme, Statistics, layers_of, place
from irtool.quant.boundaries import Account, account
from irtool.quant.search import fewest_float
from irtool.train import Status, evaluate
from irtool.train.data.split import MemorySplit, Split, in_batches
from irtool.workflows.loading.feeds import Feed, agreement, feed_of, is_classifier, runner
from irtool.workflows.quantize.calibration_images import Images
from irtool.workflows.quantize.prepare import calibrated, fixed_batch, prepare, write_float
from irtool.workflows.quantize.sensitivity import Sensitivity, sensitivities

SCORE_BATCH = 64
SENSITIVITY_IMAGES = 512
AGREED_IMAGES = 64
"""The same where whole outputs are compared, of which there may be millions of numbers an image."""
LATENCY_SECONDS = 10.0


@dataclass(frozen=True)
class Settings:
    """Settings of a quantisation.

    Attributes:
        engine: a key of `irtool.engines.table.ENGINES`.
        scheme: the options of quantisation.
        max_drop: how much accuracy may be lost, as a share.
        runs, threads: of the latency measurement.
        sensitivity: whether to measure each layer alone even where the accuracy holds.
        opset: of the ONNX file of a torch model.
        equalise: whether channels are equalised between layers first.
        weights_only: whether weights alone are quantised, for size.
    """

    engine: str
    scheme: Scheme
    max_drop: float
    runs: int
    threads: int
    sensitivity: bool
    opset: int = 17
    equalise: bool = False
    weights_only: bool = False


@dataclass(frozen=True)
class Measured:
    """One file: its bytes, its accuracy on the scored images as a share, its median latency at batch 1."""

    bytes: int
    accuracy: float
    latency_ms: float


@dataclass(frozen=True)
class Outcome:
    """The result of quantising a graph.

    Attributes:
        before, after: the float and the int8 file.
        ratio: of paired latencies, int8 over float.
        placement: of the int8 file.
        model: the prepared float model, which the placement speaks of.
        floating: the layers left in float for accuracy.
        sensitivity: of each layer, the most sensitive first; empty if it was not measured.
        expected: the float accuracy on the images that sensitivity was measured on.
        notes: what the passes did.
        account: where the int8 file goes into integers and out again, and why.
        missed: the layers that the engine could not take in integers.
        measure: what `accuracy` is: of the labels, of the float model's answers, or the agreement of all outputs.
        inputs: those of one run, of one image where the batch is free.
    """

    before: Measured
    after: Measured
    ratio: float
    placement: Placement
    model: ModelProto
    floating: tuple[str, ...]
    sensitivity: tuple[Sensitivity, ...]
    expected: float
    notes: tuple[str, ...]
    account: Account
    missed: tuple[str, ...]
    measure: str
    inputs: tuple[np.ndarray, ...]


def quantize_graph(graph: Graph, images: Images, settings: Settings, folder: Path, reporter: Reporter) -> Outcome:
    """Write `float` and `int8` files of the engine into `folder`, and measure both.

    Raises:
        CheckError: a pass changed the numbers, or no mixture of int8 and float keeps the accuracy.
        IrtoolError: a step cannot be taken.
    """
    engine = ENGINES[settings.engine]
    source = folder / "float.onnx"
    feed = feed_of(graph, images.preprocessing.input_shape)
    if feed.others and not engine.int8.several_inputs:
        remedy = "Fix the others with --set NAME=VALUE, or use --engine onnxruntime."
        raise OptionError("several inputs", where=f"--engine {engine.name}", remedy=remedy)
    with reporter.stage("write the float model"):
        write_float(graph, source, images, settings.opset)
        engine.written(source)
    with reporter.stage("prepare the graph"):
        model, notes = prepare(graph, source, next(images.batches(8)), folder, engine, settings.equalise, feed)
    if not layers_of(model):
        raise CheckError("no layer has a constant float weight", where=settings.engine, remedy="Nothing here can be quantised.")
    stats = calibrated(model, fixed_batch(source, feed), engine, images, reporter, feed)
    work = _Work(engine, settings, images, model, stats, folder, reporter, feed)
    before = work.score(folder / f"float{engine.suffix}", "score float")
    floating, after, found, expected = work.search(before)
    with reporter.stage("time both"):
        first, second, ratio = work.timed(before, after)
        placement = work.placement(floating)
        where = work.account(placement)
    return Outcome(
        first,
        second,
        ratio,
        placement,
        model,
        floating,
        tuple(found),
        expected,
        notes,
        where,
        work.missed,
        work.measure,
        work.one_run(),
    )


class _Work:
    """The trials with one model in one engine."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        images: Images,
        model: ModelProto,
        stats: Mapping[str, Statistics],
        folder: Path,
        reporter: Reporter,
        feed: Feed,
    ) -> None:
        self.engine, self.settings, self.model, self.stats, self.folder, self.reporter = engine, settings, model, stats, folder, reporter
        self.missed: tuple[str, ...] = ()
        self.images, self.feed, self.batch = images, feed, fixed_batch(folder / "float.onnx", feed)
        self.reference: Callable[[np.ndarray], list[np.ndarray]] | None = None
        """The float model, where it is no classifier: its outputs are what int8 is compared with."""
        self.measure = "accuracy" if images.labelled else "agreement with float"
        self.scored: Split = images.scored
        run = self._runner(folder / f"float{engine.suffix}")
        first = run(next(self._pixels()))
        if not is_classifier(first, min(SCORE_BATCH, len(self.scored))):
            self.measure = "agreement of outputs"
            self.reference = run
        elif not images.labelled:
            self.scored = self._answered(images.scored)

    def _runner(self, path: Path) -> Callable[[np.ndarray], list[np.ndarray]]:
        return runner(self.engine.session(path, self.settings.threads), self.feed, self.batch)

    def _pixels(self) -> Iterator[np.ndarray]:
        """The scored images, normalised."""
        split = self.scored
        for pixels in split.batches(in_batches(len(split), SCORE_BATCH)):
            yield split.preprocessing.normalise(pixels).numpy()

    def _classifier(self, path: Path) -> Callable[[np.ndarray], np.ndarray]:
        run = self._runner(path)

        def scores(images: np.ndarray) -> np.ndarray:
            (found,) = run(images)
            return found.reshape(found.shape[:2])

        return scores

    def placement(self, floating: tuple[str, ...]) -> Placement:
        """Place integers in the file, with these layers in float."""
        if self.settings.weights_only:
            return Placement((), {}, frozenset(), dict.fromkeys(range(len(self.model.graph.node)), "weights alone are integers"))
        return place(self.model, self.engine.int8.policy, floating)

    def one_run(self) -> tuple[np.ndarray, ...]:
        """The inputs of one run, of one image where the batch is free."""
        return self.feed(np.repeat(next(self.images.batches(1)), self.batch or 1, axis=0))

    def timed(self, before: float, after: float) -> tuple[Measured, Measured, float]:
        """The float and the int8 file, with their accuracies, and the ratio of their paired latencies."""
        paths = [self.folder / f"{name}{self.engine.suffix}" for name in ("float", "int8")]
        sessions = [self.engine.session(path, self.settings.threads) for path in paths]
        times = latency_pairs(sessions, self.one_run(), runs=self.settings.runs, seconds=LATENCY_SECONDS)
        first, second = (
            Measured(path.stat().st_size, accuracy, time.median_ms)
            for path, accuracy, time in zip(paths, (before, after), times.latencies, strict=True)
        )
        return first, second, times.ratios[1]

    def account(self, placement: Placement) -> Account:
        """Where the int8 file goes into integers and out again, and why."""
        if self.settings.weights_only:
            return account(self.model, placement)
        path = self.folder / f"int8{self.engine.suffix}"
        return self.engine.int8.account(path, self.model, placement, self.one_run()[self.feed.place])

    def score(self, path: Path, task: str) -> float:
        """Accuracy on all scored images, as a share; of a model that is no classifier the agreement of its outputs with float."""
        if self.reference is None:
            return evaluate(self._classifier(path), self.scored, SCORE_BATCH, progress=self.reporter, task=task).accuracy
        run, found, done = self._runner(path), list[tuple[float, int]](), 0
        for pixels in self._pixels():
            found.append((agreement(run(pixels), self.reference(pixels)), len(pixels)))
            done += len(pixels)
            self.reporter(Status(task, done, len(self.scored)))
        return sum(share * count for share, count in found) / done

    def search(self, before: float) -> tuple[tuple[str, ...], float, list[Sensitivity], float]:
        """The layers to leave in float, the accuracy with them, and the sensitivities if they were measured. The file is written."""
        scores: dict[tuple[str, ...], float] = {}

        def good(floating: tuple[str, ...]) -> bool:
            if floating not in scores:
                scores[floating] = self._trial(floating)
            return before - scores[floating] <= self.settings.max_drop

        found: list[Sensitivity] = []
        expected = 0.0
        fine = good(())
        if (not fine or self.settings.sensitivity) and not self.settings.weights_only:
            found, expected = self._sensitivities()
        order = [] if self.settings.weights_only else [entry.layer for entry in found]
        chosen: tuple[str, ...] | None = () if fine else fewest_float(order, good) if order else None
        if chosen is None:
            raise CheckError(
                f"int8 loses {100 * (before - scores[()]):.2f} points, and no mixture with float layers loses less than "
                f"{100 * self.settings.max_drop:.2f}",
                where=self.settings.engine,
                remedy="Try the method percentile or minmax, more images, or a larger --max-drop (max_drop in a recipe).",
            )
        if chosen != next(reversed(scores)):
            self._trial(chosen)
        return chosen, scores[chosen], found, expected

    def _trial(self, floating: tuple[str, ...]) -> float:
        path = self.folder / f"int8{self.engine.suffix}"
        placement, total = self.placement(floating), len(layers_of(self.model))
        name = f"int8, {total - len(placement.layers)} of {total} layers in float"
        with self.reporter.stage(f"write {name}"):
            if self.settings.weights_only:
                self.engine.int8.write_weights(self.folder / "float.onnx", path, self.settings.scheme)
            else:
                self.missed = self.engine.int8.write(self.model, self.stats, placement, self.settings.scheme, path)
        return self.score(path, f"score {name}")

    def _sensitivities(self) -> tuple[list[Sensitivity], float]:
        count = min(SENSITIVITY_IMAGES if self.reference is None else AGREED_IMAGES, len(self.scored))
        some = np.linspace(0, len(self.scored) - 1, count).astype(int)
        index = torch.from_numpy(some)
        pixels = self.scored.preprocessing.normalise(next(iter(self.scored.batches([index])))).numpy()
        labels = None if self.reference is not None else self.scored.labels[index].numpy()
        total = len(self.placement(()).layers)
        found = sensitivities(
            self.model,
            self.engine.int8.policy,
            self.stats,
            self.settings.scheme,
            pixels,
            labels,
            feed=self.feed,
            batch=self.batch,
            threads=self.settings.threads,
            told=lambda done: self.reporter(Status("sensitivity of each layer", done, total)),
        )
        if labels is None:
            return found, 1.0
        answers = runner(OnnxSession(self.folder / "float.onnx", self.settings.threads), self.feed, self.batch)(pixels)[0]
        return found, float((answers.reshape(len(labels), -1).argmax(1) == labels).mean())

    def _answered(self, split: Split) -> Split:
        """Unlabelled images, with the float model's answers for labels: accuracy is then agreement."""
        pixels = next(iter(split.batches([torch.arange(len(split))])))
        scores = self._classifier(self.folder / f"float{self.engine.suffix}")(split.preprocessing.normalise(pixels).numpy())
        classes = tuple(map(str, range(scores.shape[1])))
        return MemorySplit(pixels, torch.from_numpy(scores.argmax(1)), classes, split.preprocessing)


def record(outcome: Outcome, images: Images, settings: Settings) -> dict[str, Any]:
    """All that was found, as JSON data."""
    return {
        "engine": settings.engine,
        "scheme": vars(settings.scheme),
        "preprocessing": images.preprocessing.to_dict(),
        "classes": list(images.classes),
        "images": {"calibration": min(images.count, len(images.calibration)), "scored": len(images.scored), "labelled": images.labelled},
        "measure": outcome.measure,
        "float": vars(outcome.before),
        "int8": vars(outcome.after),
        "latency_ratio": outcome.ratio,
        "layers_in_float": list(outcome.floating),
        "layers_without_int8_form": list(outcome.missed),
        "steps": [vars(step) for step in outcome.account.steps],
        "notes": list(outcome.notes),
    }
