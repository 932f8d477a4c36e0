"""`irtool compress`: from a checkpoint to MNN."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from irtool.cli import options
from irtool.cli.flags import with_flags
from irtool.cli.recipe import show_recipe
from irtool.cli.screen import answer, screen
from irtool.cli.screen import out as console
from irtool.cli.tables import chain_table, comparison_table, trials_table
from irtool.cli.wishes import budget_of, limits_of, step_of
from irtool.errors import OptionError
from irtool.extras import absent
from irtool.workflows.compress.effect import Effect, sentences
from irtool.workflows.compress.options import CompressOptions
from irtool.workflows.compress.run import Compression
from irtool.workflows.compress.run import compress as workflow
from irtool.workflows.loading.data import DataOptions
from irtool.workflows.loading.model_inputs import input_shapes, input_values


@with_flags(CompressOptions, leave_out=("budget", "limits", "round_to"), defaults={"ratio": ""}, panel="Compression")
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
    values: options.Values = None,
    mean: options.Mean = None,
    std: options.Std = None,
    limit: options.Limit = None,
    image_size: options.ImageSize = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            help="In place of a ratio, what may be left: macs=50%, params=1M, bytes=2M, latency=50% or latency=5ms; may be repeated.",
            rich_help_panel="Compression",
        ),
    ] = None,
    layer_limit: Annotated[
        list[str] | None,
        typer.Option(
            help="With a budget, the largest part of its channels that a layer may lose: 'layer3.*=70%'; may be repeated.",
            rich_help_panel="Compression",
        ),
    ] = None,
    round_to: Annotated[
        str,
        typer.Option(
            help="Keep a multiple of this many channels in each layer; auto: what engines like at its width.",
            rich_help_panel="Compression",
        ),
    ] = "auto",
    **chosen: Any,
) -> None:
    """Prune, fold and export a model, with every step shown right; compare it with the original.

    Writes model.safetensors (the smaller model, trainable), plan.json, model.onnx, model.mnn, report.json and the page
    report.html (with graphs.json behind it). From an
    .onnx file it makes no model.safetensors, and no model.mnn where MNN lacks one of its operators.

    Example: irtool compress PreResNet:depth=38 --weights sparse.pth --data cifar10.zip
    --criterion bn_scale --residual select --ratio 0.5 --out small
    """
    if recipe is not None:
        shared = {"weights": weights, "input": inputs, "set": values, "mean": mean, "std": std, "limit": limit, "image_size": image_size}
        _require_alone(
            model, shared | {"budget": budget, "layer_limit": layer_limit, "round_to": None if round_to == "auto" else round_to} | chosen
        )
        show_recipe(recipe, out, data)
        return
    if model is None:
        raise OptionError("no model", where="compress", remedy="Name one, or give --recipe FILE.")
    chosen |= {"budget": budget_of(budget or ()), "limits": limits_of(layer_limit or ()), "round_to": step_of(round_to)}
    data_options = DataOptions(data, mean, std, limit, image_size)
    with screen() as progress:
        done = workflow(
            model,
            out,
            weights=weights,
            data=data_options,
            inputs=input_shapes(inputs),
            values=input_values(values),
            progress=progress,
            **chosen,
        )
    answer(done.report.to_dict() | {"folder": str(out), "verdict": done.verdict, "met": done.met})
    _show(model, out, done)
    if not done.met:
        raise typer.Exit(1)


def _show(model: str, out: Path, done: Compression) -> None:
    report = done.report
    if done.trials:
        console().print(trials_table(done.trials))
        console().print(f"\n{done.verdict}\n", markup=False)
    console().print(done.plan.summary(), "\n".join(report.notes) + "\n", sep="\n", markup=False)
    if report.effect is not None:
        said = sentences(Effect(**report.effect), report.before, report.after, report.truth)
        console().print("\n".join(said).replace("FOLDER", str(out)) + "\n", markup=False)
    console().print(chain_table(report.chain))
    console().print()
    title = f"{model}: {report.channels[1]:,} of {report.channels[0]:,} channels kept"
    console().print(comparison_table([("before", report.before), ("after", report.after)], title, report.truth))
    if report.speed:
        console().print("\n" + "\n".join(report.speed), markup=False)
    left_out = absent("MNN", *(["matplotlib"] if done.trials else []))
    console().print("\n".join(["", *left_out, f"written to {out}: {', '.join(report.files.values())}"]), markup=False)


def _require_alone(model: str | None, options: Mapping[str, Any]) -> None:
    """A recipe says what is done, and to what: nothing else may say it too."""
    if model is not None:
        raise OptionError("a model and a recipe", where="--recipe", remedy="The recipe names its model: leave MODEL out.")
    if given := [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]:
        raise OptionError(f"{', '.join(given)} and a recipe", where="--recipe", remedy="All but --data and --out is said in the recipe.")
