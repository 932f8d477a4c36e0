"""`irtool compress`: from a checkpoint to MNN."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from irtool.cli import options
from irtool.cli.flags import with_flags
from irtool.cli.output import COMPRESS, keep_inputs, model_files, output_folder
from irtool.cli.screen import out as console
from irtool.cli.screen import screen
from irtool.cli.tables import chain_table, comparison_table
from irtool.cli.wishes import budget_of, limits_of
from irtool.errors import OptionError
from irtool.hosts.onnx.graph import OnnxGraph
from irtool.hosts.torch.graph import FxGraph
from irtool.pruning.planner import Plan, check_options
from irtool.workflows.compress import FILES, Settings, compress_graph, original, report_of, timed
from irtool.workflows.compress_onnx import compress_onnx, original_onnx
from irtool.workflows.data import DataOptions, example_shapes, known_preprocessing
from irtool.workflows.models import fingerprint, graph_of, input_shapes, onnx_file
from irtool.workflows.recipe.run import run_recipe
from irtool.workflows.record import Report
from irtool.workflows.run_folder import keep_history, write_run_page


@dataclass(frozen=True)
class CompressOptions:
    """What to remove, and how it is written and timed.

    Args:
        ratio: The fraction of channels to remove, 0 to below 1.
        budget: In place of a ratio, what may be left: macs=50%, params=1M, bytes=2M; may be repeated.
        layer_limit: With a budget, the largest part of its channels that a layer may lose: 'layer3.*=70%'; may be repeated.
        criterion: How channels are ranked: l1, l2, bn_scale, random, or fisher, which looks at training images. By default
            fisher for a budget with --data, else l1.
        scope: Rank over all layers, or in each.
        residual: Residual streams: select from them, couple all that write to them, or keep them.
        constants: What removed channels emit on average: into the next bias, or dropped as published.
    if chosen.get("budget") and chosen.get("ratio") is not None:
        raise OptionError("a ratio and a budget", where="--ratio", remedy="Give one of them: the budget decides how many channels go.")
        calibrate: Measure those averages on so many training images; 0: batch norm's statistics tell.
        reconstruct: Refit every layer on 128 training images, without labels, to what the original gave. The default with --data,
            unless --constants or --calibrate is given.
        round_to: Keep a multiple of this many channels.
        min_channels: Keep at least so many channels in each layer.
        ignore: A layer or module to leave alone; may be repeated.
        seed: For the random criterion.
        opset: ONNX operator set, 11 to 26; an .onnx file keeps its own.
        runs: Timed runs of each model in each engine.
        threads: Threads of each engine while it is timed.
        allow_unchecked: Accept steps that no reference in numbers exists for, on the proof by labels alone.
    """

    ratio: float = 0.5
    budget: tuple[str, ...] = ()
    layer_limit: tuple[str, ...] = ()
    criterion: str | None = None
    scope: options.Scope = options.Scope.GLOBAL
    residual: options.Residual = options.Residual.COUPLE
    constants: options.Constants = options.Constants.ABSORB
    calibrate: int = 0
    reconstruct: bool = False
    round_to: int = 1
    min_channels: int = 1
    ignore: tuple[str, ...] = ()
    seed: int = 0
    opset: int = 17
    runs: int = 50
    threads: int = 1
    allow_unchecked: bool = False

    def settings(self) -> Settings:
        """The same for the work itself.

        Raises:
            OptionError: a value that can never work.
        """
        scope, residual = self.scope.value, self.residual.value
        budget, limits = budget_of(self.budget), limits_of(self.layer_limit)
        if limits and budget is None:
            raise OptionError("limits hold for budgets", where="--layer-limit", remedy="Give --budget too.")
        check_options(self.criterion or "l1", self.ratio, scope, residual, self.min_channels, self.round_to)
        if self.runs < 1 or self.threads < 1:
            raise OptionError(
                f"--runs {self.runs} and --threads {self.threads} must be at least 1", remedy="Leave them out for the defaults."
            )
        for name, most, remedy in _MOST:
            if not 0 <= getattr(self, name) <= most:
                raise OptionError(f"{getattr(self, name)}", where=f"--{name}", remedy=remedy)
        plan: dict[str, Any] = {"criterion": self.criterion, "ratio": self.ratio, "scope": scope, "residual": residual, "min_channels": self.min_channels,
                "round_to": self.round_to, "ignore": tuple(self.ignore), "seed": self.seed}  # fmt: skip
        plan |= {name: value for name, value in (("budget", budget), ("limits", limits)) if value}
        refit = IMAGES if self.reconstruct else 0
        return Settings(plan, self.constants.value, self.calibrate, refit, self.opset, self.runs, self.threads, self.allow_unchecked)


IMAGES = 128
"""Refitted on. More gain next to nothing."""
_MOST = (
    ("threads", options.MOST_THREADS, options.FEWER_THREADS),
    ("calibrate", sys.maxsize, "Give a number of training images, or 0."),
    ("seed", options.LARGEST_SEED, f"Give 0 to {options.LARGEST_SEED}."),
)


@with_flags(CompressOptions, panel="Compression")
def compress(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for what is made. It appears when all checks hold.")],
    model: options.OptionalModelArgument = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="A TOML file that chains training, passes and int8, in place of a model and options; --data replaces its data.",
            metavar="FILE",
        ),
    ] = None,
    weights: options.Weights = None,
    data: options.Data = None,
    inputs: options.Inputs = None,
    mean: options.Mean = None,
    std: options.Std = None,
    limit: options.Limit = None,
    image_size: options.ImageSize = None,
    **chosen: Any,
) -> None:
    """Prune, fold and export a model, with every step shown right; compare it with the original.

    Writes model.safetensors (the smaller model, trainable), plan.json, model.onnx, model.mnn, report.json and the page
    report.html (with graphs.json behind it). From an
    .onnx file it makes no model.safetensors, and no model.mnn where MNN lacks one of its operators.

    [bold]Example[/]: irtool compress PreResNet:depth=38 --weights sparse.pth --data cifar10.zip
    --criterion bn_scale --residual select --ratio 0.5 --out small
    """
    if recipe is not None:
        shared = {"weights": weights, "input": inputs, "mean": mean, "std": std, "limit": limit, "image_size": image_size}
        _require_alone(model, shared | chosen)
        run_recipe(recipe, out, data)
        return
    if model is None:
        raise OptionError("no model", where="compress", remedy="Name one, or give --recipe FILE.")
    if chosen.get("budget") and chosen.get("ratio") is not None:
        raise OptionError("a ratio and a budget", where="--ratio", remedy="Give one of them: the budget decides how many channels go.")
    given = {name: value for name, value in chosen.items() if value is not None}
    if data is None and given.get("reconstruct"):
        raise OptionError("no images", where="--reconstruct", remedy="Give --data too, or leave it out.")
    refits = data is not None and not given.keys() & {"constants", "calibrate"}
    settings = CompressOptions(**{"reconstruct": refits, **given}).settings()
    if settings.calibrate and data is None:
        raise OptionError(f"{settings.calibrate} images, and no --data", where="--calibrate", remedy="Give --data too.")
    keep_inputs((out / name for name in FILES.values()), model_files(model, weights))
    plan, report = _run(model, weights, DataOptions(data, mean, std, limit, image_size), inputs, settings, out)
    console().print(plan.summary(), "\n".join(report.notes) + "\n", sep="\n", markup=False)
    console().print(chain_table(report.chain))
    console().print()
    title = f"{model}: {report.channels[1]:,} of {report.channels[0]:,} channels kept"
    console().print(comparison_table([("before", report.before), ("after", report.after)], title))
    console().print(f"\nwritten to {out}: {', '.join(report.files.values())}")


def _require_alone(model: str | None, options: Mapping[str, Any]) -> None:
    """A recipe says what is done, and to what: nothing else may say it too."""
    if model is not None:
        raise OptionError("a model and a recipe", where="--recipe", remedy="The recipe names its model: leave MODEL out.")
    if given := [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]:
        raise OptionError(f"{', '.join(given)} and a recipe", where="--recipe", remedy="All but --data and --out is said in the recipe.")


def _run(
    model: str, weights: Path | None, data_options: DataOptions, inputs: list[str] | None, settings: Settings, out: Path
) -> tuple[Plan, Report]:
    with output_folder(out, COMPRESS) as folder, screen() as progress, tempfile.TemporaryDirectory() as scratch:
        given = input_shapes(inputs)
        data_options = known_preprocessing(model, data_options)
        data, source = data_options.load(model, progress), onnx_file(model)
        with progress.stage("trace"):
            graph = graph_of(model, weights, example_shapes(data, given, own_batch=source is not None))
        if isinstance(graph, OnnxGraph):
            assert source is not None
            before, no_mnn = original_onnx(graph, source, data, Path(scratch), progress)
            done = compress_onnx(graph, data, folder, settings, no_mnn, progress)
        else:
            assert isinstance(graph, FxGraph)
            done = compress_graph(graph, data, folder, settings, progress)
            before = original(graph, data, Path(scratch), settings, progress)
        (first, after), ratios = timed([before, done.built], settings, progress)
        origin: dict[str, Any] = {
            "model": str(source.resolve()) if source else model,
            "weights": str(weights.resolve()) if weights else None,
            **data_options.record(),
        }
        origin |= {"inputs": [list(leaf.shape) for leaf in graph.example_inputs], "fingerprint": fingerprint(graph)}
        report = report_of(first, after, ratios[1], done, origin, settings, data)
        report.write(folder / FILES["report"])
        keep_history(Path(model), folder)
        with progress.stage("write the page"):
            write_run_page(folder, graph, done.built.graph, source.name if source else model)
    return done.plan, report
