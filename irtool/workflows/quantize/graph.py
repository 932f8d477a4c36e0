"""The work of `irtool quantize`: prepare, calibrate, choose, write in several forms, score, time, and recommend one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import ModelProto

from irtool.engines.engine import Engine, Feeds
from irtool.engines.onnxruntime.session import OnnxSession
from irtool.engines.session import Session
from irtool.engines.table import ENGINES, REFERENCE
from irtool.errors import BackendError, CheckError, ExportError, OptionError
from irtool.ir import Graph
from irtool.progress import Reporter
from irtool.quant import Placement, Scheme, layers_of
from irtool.quant.boundaries import Account, account
from irtool.workflows.loading.feeds import Feed, as_read, feed_of, runner
from irtool.workflows.quantize.calibration_images import Images
from irtool.workflows.quantize.forms import WORDS, Form, Times, busy, light_forms, recommended, timed
from irtool.workflows.quantize.judge import Judge, Score
from irtool.workflows.quantize.prepare import calibrated, fixed_batch, metadata, prepare, write_float
from irtool.workflows.quantize.sensitivity import Sensitivity
from irtool.workflows.quantize.trials import Chosen, Trials, fitting_feeds


@dataclass(frozen=True)
class Settings:
    """Settings of a quantisation.

    Attributes:
        engine: a key of `irtool.engines.table.ENGINES`.
        scheme: the options of quantisation.
        max_drop: how much accuracy may be lost, as a share.
        runs, threads: of the latency measurement.
        sensitivity: whether to measure each layer alone even where all can be integers.
        opset: of the ONNX file of a torch model.
        equalise: whether channels are equalised between layers first.
        weights_only: whether weights alone are quantised, for size.
        refine: whether weights and biases are fitted to what the layers read.
        goal: a key of `irtool.workflows.quantize.forms.GOALS`.
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
    refine: bool = True
    goal: str = "size"


@dataclass(frozen=True)
class Outcome:
    """The result of quantising a graph.

    Attributes:
        forms: every file that was made, the float file first.
        recommended: the name of the form to use.
        placement: of the int8 file.
        model: the prepared float model, which the placement speaks of.
        floating: the layers left in float for accuracy.
        sensitivity: of each layer, the most sensitive first; empty if it was not measured.
        notes: what the passes did.
        account: where the int8 file goes into integers and out again, and why.
        missed: the layers that the engine could not take in integers.
        measure: what `accuracy` is: of the labels, of the float model's answers, or the agreement of all outputs.
        inputs: those of one run, of one image where the batch is free.
        warning: what to know of the times; empty if nothing.
    """

    forms: tuple[Form, ...]
    recommended: str
    placement: Placement
    model: ModelProto
    floating: tuple[str, ...]
    sensitivity: tuple[Sensitivity, ...]
    notes: tuple[str, ...]
    account: Account
    missed: tuple[str, ...]
    measure: str
    inputs: tuple[np.ndarray, ...]
    warning: str

    @property
    def before(self) -> Form:
        """The float file."""
        return self.forms[0]

    @property
    def after(self) -> Form:
        """The int8 file."""
        return next(form for form in self.forms if form.name == "int8")

    @property
    def ratio(self) -> float | None:
        """Of paired latencies, int8 over float; None where the machine was too busy to tell."""
        return self.after.ratio


def quantize_graph(graph: Graph, images: Images, settings: Settings, folder: Path, reporter: Reporter) -> Outcome:
    """Write a model's forms for an engine into `folder`: `float`, `half`, `weights8`, `weights4` (where that is smaller) and `int8`, and
    compare them.

    Layers that stay in float are chosen on images of the calibration split; accuracies are of the scored images, which choose nothing.

    Raises:
        CheckError: a pass changed the numbers; no mixture of int8 and float keeps the accuracy; or the scored images contradict that it does.
        IrtoolError: a step cannot be taken.
    """
    engine = ENGINES[settings.engine]
    source = folder / "float.onnx"
    graph, widened = _in_float32(graph)
    judged, told = _judged(graph, engine)
    feed = feed_of(graph, images.preprocessing.input_shape)
    if (feed.others or feed.twins) and not engine.int8.several_inputs:
        remedy = "Fix the others with --set NAME=VALUE, or use --engine onnxruntime."
        raise OptionError("several inputs", where=f"--engine {engine.name}", remedy=remedy)
    with reporter.stage("write the float model"):
        write_float(graph, source, metadata(images), settings.opset)
        engine.written(source)
    with reporter.stage("prepare the graph"):
        model, notes = prepare(graph, source, next(images.batches(8)), folder, engine, settings.equalise, feed)
    if not layers_of(model):
        raise CheckError("no layer has a constant float weight", where=settings.engine, remedy="Nothing here can be quantised.")
    work = _Work(engine, settings, images, folder, reporter, feed, fixed_batch(source, feed), judged)
    return work.run(model, (*widened, *told, *notes))


def _judged(graph: Graph, engine: Engine) -> tuple[tuple[str, ...], list[str]]:
    """The values that files are judged by where outputs follow on a choice, such as which detections are kept, and a line that names them.

    Of such outputs agreement says nothing: one detection more moves all rows behind it. Empty where outputs will do.

    Raises:
        OptionError: no output will do, and the engine shows no values inside.
    """
    hidden, names = graph.hidden_outputs(), tuple(graph.compared())
    if len(hidden) == len({value.name for value in graph.outputs}) and engine is not REFERENCE:
        what = f"how many entries {', '.join(hidden)} have is data, such as the detections that are kept, and {engine.title} shows nothing before that choice"
        remedy = "Use --engine onnxruntime, or quantise the part of the model before it."
        raise OptionError(what, where=f"--engine {engine.name}", remedy=remedy)
    if not hidden or engine is not REFERENCE:
        return (), []
    return names, [f"judged by {', '.join(names)}, which decide the sizes of {', '.join(hidden)}: how many entries these have is data"]


def _in_float32(graph: Graph) -> tuple[Graph, list[str]]:
    """The graph in float32, from which scales are taken, and a line if it computed in something else."""
    if graph.arithmetic is not torch.float32:
        return graph, []
    wide = graph.widened()
    return wide, [] if wide is graph else ["real numbers of other widths are float32 in all files"]


@dataclass
class _Work:
    """The work with one graph in one engine, once its float file is there."""

    engine: Engine
    settings: Settings
    images: Images
    folder: Path
    reporter: Reporter
    feed: Feed
    batch: int | None
    judged: tuple[str, ...] = ()

    def run(self, model: ModelProto, notes: tuple[str, ...]) -> Outcome:
        judge = Judge(
            lambda path: runner(self._session(path), self.feed, self.batch),
            self._file("float"),
            self.images,
            self.reporter,
        )
        feeds: Feeds = fitting_feeds(model, self.images, self.feed, self.batch) if self.settings.refine else ()
        chosen, placement = self._chosen(model, judge, feeds)
        light, left_out = self._light(feeds)
        names = ["float", *light, "int8"]
        expected = {name: judge.expected_drop(self._file(name)) for name in names[1:-1]} | {"float": 0.0, "int8": chosen.expected}
        scores = {"float": judge.float_score} | {name: judge.score(self._file(name), f"score {name}") for name in names[1:]}
        self._require(scores["int8"])
        inputs, warning = self._one_run(), busy(self.settings.threads)
        with self.reporter.stage("time the files"):
            paths = {name: self._file(name) for name in names}
            times = timed(self.engine, paths, inputs, self.settings.runs, self.settings.threads)
            where, unseen = self._account(model, placement, inputs)
        forms = tuple(self._form(name, scores[name], expected[name], times) for name in names)
        best = recommended(forms, self.settings.goal, self.settings.max_drop)
        return Outcome(
            forms, best.name, placement, model, chosen.floating, chosen.sensitivity, (*notes, *left_out, *unseen), where, chosen.missed, judge.measure, inputs, warning
        )  # fmt: skip

    def _session(self, path: Path) -> Session:
        threads = self.settings.threads
        return OnnxSession(path, threads, values=as_read(path, self.judged)) if self.judged else self.engine.session(path, threads)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}{self.engine.suffix}"

    def _chosen(self, model: ModelProto, judge: Judge, feeds: Feeds) -> tuple[Chosen, Placement]:
        """The int8 file, written, and where its integers are."""
        settings = self.settings
        if settings.weights_only:
            expected = self._weights_alone(judge, feeds)
            if expected > settings.max_drop:
                what = f"{settings.scheme.weight_bits}-bit weights are expected to lose {100 * expected:.2f} points, more than {100 * settings.max_drop:.2f}"
                raise CheckError(what, where=settings.engine, remedy="Give more --weight-bits, or a larger --max-drop.")
            return Chosen((), expected, (), ()), Placement(
                (), {}, frozenset(), dict.fromkeys(range(len(model.graph.node)), "weights alone are integers")
            )
        stats = calibrated(model, self.batch, self.engine, self.images, self.reporter, self.feed)
        trials = Trials(
            self.engine, model, stats, settings.scheme, self.images, judge, self.folder, self.reporter, self.feed, self.batch,
            settings.threads, feeds, self.judged,
        )  # fmt: skip
        chosen = trials.choose(settings.max_drop, settings.sensitivity)
        return chosen, trials.placement(chosen.floating)

    def _weights_alone(self, judge: Judge, feeds: Feeds) -> float:
        """Write the file whose weights alone are integers, and say what it is expected to lose.

        Integers that are fitted to the float model are not always better: a net that was trained with its weights rounded is at its best in its own
        roundings, not in float. The images that choose decide.
        """
        source, path, other = self.folder / "float.onnx", self._file("int8"), self._file("nearest")
        self.engine.int8.write_weights(source, path, self.settings.scheme, feeds)
        expected = judge.expected_drop(path)
        if feeds:
            self.engine.int8.write_weights(source, other, self.settings.scheme, ())
            nearest = judge.expected_drop(other)
            if nearest < expected:
                other.replace(path)
            other.unlink(missing_ok=True)
            return min(nearest, expected)
        return expected

    def _light(self, feeds: Feeds) -> tuple[list[str], list[str]]:
        """The names of the forms that are stored smaller and computed in float, written; and a line on each that the engine refuses."""
        made, left_out = list[str](), list[str]()
        own = f"weights{self.settings.scheme.weight_bits}" if self.settings.weights_only else ""  # int8 is that form
        for name, write in light_forms(self.engine).items():
            if name == own:
                continue
            with self.reporter.stage(f"write {name}"):
                try:
                    write(self.folder / "float.onnx", self._file(name), self.settings.scheme, feeds)
                    made.append(name)
                except ExportError as error:
                    left_out.append(f"{WORDS[name]}: left out ({error})")
        return made, left_out

    def _require(self, score: Score) -> None:
        """Refuse a file whose accuracy contradicts what was expected of it, by more than two standard errors.

        Raises:
            CheckError: it does.
        """
        error = score.error or 0.0
        if score.drop - 2 * error > self.settings.max_drop:
            raise CheckError(
                f"int8 loses {100 * score.drop:.2f} ± {100 * error:.2f} points on images that chose nothing, more than the "
                f"{100 * self.settings.max_drop:.2f} allowed",
                where=self.settings.engine,
                remedy="The images that choose promised less: calibrate with images like those that are scored, more of them, or give a "
                "larger --max-drop (max_drop in a recipe).",
            )

    def _one_run(self) -> tuple[np.ndarray, ...]:
        """The inputs of one run, of one image where the batch is free."""
        return self.feed(np.repeat(next(self.images.batches(1)), self.batch or 1, axis=0))

    def _account(self, model: ModelProto, placement: Placement, inputs: tuple[np.ndarray, ...]) -> tuple[Account, list[str]]:
        """The steps into and out of integers, and a line where the engine does not tell it: its profile may not run what it runs itself."""
        if self.settings.weights_only:
            return account(model, placement), []
        try:
            return self.engine.int8.account(self._file("int8"), model, placement, inputs[self.feed.place]), []
        except BackendError as error:
            return account(model, placement), [f"where integers are is told as planned, not as {self.engine.title} runs it ({error.what})"]

    def _form(self, name: str, score: Score, expected: float, times: Times) -> Form:
        size = self._file(name).stat().st_size
        return Form(name, size, score.accuracy, score.drop, score.error, expected, times.latency_ms[name], times.ratios[name])


def record(outcome: Outcome, images: Images, settings: Settings) -> dict[str, Any]:
    """All that was found, as JSON data."""
    counts: Mapping[str, Any] = {"calibration": images.calibrated, "scored": len(images.scored), "labelled": images.labelled}
    return {
        "engine": settings.engine,
        "scheme": vars(settings.scheme),
        "preprocessing": images.preprocessing.to_dict(),
        "classes": list(images.classes),
        "images": counts,
        "measure": outcome.measure,
        "float": vars(outcome.before),
        "int8": vars(outcome.after),
        "forms": [vars(form) for form in outcome.forms],
        "goal": settings.goal,
        "recommended": outcome.recommended,
        "latency_ratio": outcome.ratio,
        "warning": outcome.warning,
        "layers_in_float": list(outcome.floating),
        "layers_without_int8_form": list(outcome.missed),
        "steps": [vars(step) for step in outcome.account.steps],
        "notes": list(outcome.notes),
    }
