"""`irtool.compress`: from a model to a smaller one in a folder, with every step shown right and both measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from irtool.atomic_files import scratch_folder
from irtool.errors import OptionError
from irtool.hosts.onnx.files.given import Given
from irtool.hosts.onnx.files.load import save_onnx
from irtool.hosts.onnx.graph import OnnxGraph
from irtool.hosts.torch.graph import FxGraph
from irtool.hosts.torch.tracing.trace import trace
from irtool.ir.graph import Graph
from irtool.progress import Reporter
from irtool.pruning.plan import Plan
from irtool.train import Data
from irtool.workflows.compress.built import FILES, Built, Compressed, compress_graph, original, report_of, timed
from irtool.workflows.compress.effect import effect_of
from irtool.workflows.compress.onnx import compress_onnx, original_onnx
from irtool.workflows.compress.options import CompressOptions
from irtool.workflows.compress.search import Trial
from irtool.workflows.compress.search_report import is_met, verdict
from irtool.workflows.compress.settings import Settings
from irtool.workflows.compress.speed import slower_sentences
from irtool.workflows.folders.output_folder import COMPRESS, keep_inputs, model_files, output_folder
from irtool.workflows.folders.record import Report
from irtool.workflows.folders.run_folder import keep_history, write_run_page
from irtool.workflows.loading.data import DataOptions, example_shapes, known_preprocessing
from irtool.workflows.loading.models import Shape, fingerprint, graph_of, onnx_file, saved_model
from irtool.workflows.loading.unlabelled import answered, load_any
from irtool.workflows.options import read_options


@dataclass(frozen=True)
class Compression:
    """The result of `irtool.compress`.

    Attributes:
        folder: where its files are; `report.files` names them.
        graph: the smaller model, batch norms folded, as its ONNX file is.
        plan: what was removed, and why not more.
        report: what was measured before and after, the chain of equality and the passes' notes.
        verdict: with a bound on what may be lost, whether it holds, in a sentence; empty without.
        met: whether the budget and the bound were met.
        trials: with a bound, what was tried.
    """

    folder: Path
    graph: Graph
    plan: Plan
    report: Report
    verdict: str = ""
    met: bool = True
    trials: tuple[Trial, ...] = ()


def compress(
    model: str | Path | nn.Module | Graph,
    out: str | Path,
    *,
    example_inputs: Any = None,
    weights: str | Path | None = None,
    data: str | Path | DataOptions | Data | None = None,
    inputs: Sequence[Shape] = (),
    values: Given | None = None,
    progress: Reporter | None = None,
    **options: Any,
) -> Compression:
    """Prune, fold and export a model, with every step shown right; compare it with the original.

    Args:
        model: what MODEL is on the command line (`net.py:Net`, an .onnx file, a saved model); or a module, or a graph.
        out: the folder for model.safetensors, plan.json, model.onnx, the files of other engines, report.json and report.html. It changes as one,
            when all checks hold.
        example_inputs: of a module, one sample or more.
        weights: a state dict's file, for a model that is named.
        data: an ImageFolder, a zip of one, or the name of a dataset; `DataOptions` says more about them; or a loaded `Data`.
        inputs: sizes of the inputs, of a model that is named and has no data.
        values: of an .onnx file's inputs whose value decides what is computed (a sampling rate), by name.
        progress: is told what is being done.
        **options: the fields of `CompressOptions`: ratio, budget, limits, criterion, residual, reconstruct ...

    Raises:
        CheckError: a step is wrong. Nothing is written.
        IrtoolError: a step cannot be taken, or an option can never work.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = compress("VGG:depth=11,width=0.125", f"{folder}/small", data="digits", budget={"macs": 0.5}, stages=1, distil=0)
    >>> round(done.report.after.macs / done.report.before.macs, 1)
    0.5
    >>> {link.verdict for link in done.report.chain.links}
    {'holds'}
    """
    reporter, out = progress or Reporter(), Path(out)
    if isinstance(data, DataOptions):
        data.require_source()
    settings = read_options(CompressOptions, options).settings(data=data is not None and data != DataOptions())
    source = _Source(model, example_inputs, None if weights is None else Path(weights), tuple(inputs), values or {})
    keep_inputs((out / name for name in FILES.values()), source.files())
    with output_folder(out, COMPRESS) as folder, scratch_folder() as scratch:
        return replace(_run(source, data, settings, folder, scratch, reporter), folder=out)


@dataclass(frozen=True)
class _Source:
    """The source of the model."""

    model: str | Path | nn.Module | Graph
    example_inputs: Any
    weights: Path | None
    inputs: tuple[Shape, ...]
    values: Given

    @property
    def name(self) -> str:
        """As the command line has it; empty for an object, which cannot be built again from its name."""
        return str(self.model) if isinstance(self.model, str | Path) else ""

    @property
    def title(self) -> str:
        """For people."""
        return self.name or type(self.model).__name__

    @property
    def saved(self) -> bool:
        """Whether it is a file with a batch size of its own."""
        return bool(self.name) and saved_model(self.name) is not None

    def files(self) -> list[Path]:
        """Files that are read, and may not be written over."""
        return model_files(self.name, self.weights) if self.name else []

    def graph(self, shapes: Sequence[Shape]) -> Graph:
        """The traced or read model."""
        if self.name:
            return graph_of(self.name, self.weights, shapes, values=self.values)
        if self.weights is not None:
            raise OptionError("weights of a model that is an object", where="weights", remedy="Load them into it first.")
        if isinstance(self.model, nn.Module):
            if self.example_inputs is None:
                raise OptionError("a module without inputs", where="example_inputs", remedy="Give what its forward takes.")
            return trace(self.model, self.example_inputs)
        assert isinstance(self.model, Graph)
        return self.model


def _loaded(source: _Source, data: str | Path | DataOptions | Data | None, reporter: Reporter) -> tuple[Data | None, DataOptions]:
    """The images, and the options that find them again."""
    if isinstance(data, Data):
        return data, DataOptions()
    options = data if isinstance(data, DataOptions) else DataOptions(None if data is None else str(data))
    model: str | nn.Module | Graph = source.name
    if isinstance(source.model, nn.Module | Graph):
        model = source.model
    else:
        options = known_preprocessing(source.name, options)
    return load_any(model, options, reporter), options


def _run(
    source: _Source,
    given: str | Path | DataOptions | Data | None,
    settings: Settings,
    folder: Path,
    scratch: Path,
    reporter: Reporter,
) -> Compression:
    data, data_options = _loaded(source, given, reporter)
    file = onnx_file(source.name) if source.name else None
    with reporter.stage("trace"):
        graph = source.graph(example_shapes(data, source.inputs, own_batch=source.saved))
    data = None if data is None else answered(data, graph, reporter)
    before: Built
    done: Compressed
    if isinstance(graph, OnnxGraph):
        own = _own_file(graph, None if source.values else file, scratch)
        before = original_onnx(graph, own, data, scratch, reporter)
        done = compress_onnx(graph, data, folder, settings, before.others.left_out, reporter)
    else:
        traced = cast(FxGraph, graph)
        done = compress_graph(traced, data, folder, settings, reporter)
        before = original(traced, data, scratch, settings, done.built.others.left_out, reporter)
    first, after = timed([before, done.built], settings, reporter)
    origin: dict[str, Any] = {
        "model": str(file.resolve()) if file is not None else source.name or None,
        "weights": str(source.weights.resolve()) if source.weights else None,
        **data_options.record(),
        "inputs": [list(leaf.shape) for leaf in graph.example_inputs],
        "fingerprint": fingerprint(graph),
        **({"values": source.values} if source.values else {}),
    }
    slower = slower_sentences(done.built.graph, after.ratios, after.intervals, settings.threads)
    with reporter.stage("compare with the original"):
        effect = effect_of(graph, done.built.graph, data)
    told = report_of(first.measured, after.measured, after.ratios, done, origin, settings, data, slower)
    report = told if effect is None else replace(told, effect=effect.to_dict())
    report.write(folder / FILES["report"])
    if source.name:
        keep_history(Path(source.name), folder)
    with reporter.stage("write the page"):
        write_run_page(folder, graph, done.built.graph, file.name if file is not None else source.title)
    made = Compression(folder, done.built.graph, done.plan, report)
    if done.found is None or settings.bound is None:
        return made
    met = is_met(done.found, settings.bound)
    return replace(made, verdict=verdict(done.found, settings.bound), met=met, trials=done.found.trials)


def _own_file(graph: OnnxGraph, file: Path | None, scratch: Path) -> Path:
    """The file that an ONNX graph was read from, or one with what it has become."""
    if file is not None:
        return file
    path = scratch / "original.onnx"
    save_onnx(graph, path)
    return path
