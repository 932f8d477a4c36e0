"""`irtool demo`: the whole job, on real data that comes with a Python package."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from irtool import trace
from irtool.atomic_files import scratch_folder
from irtool.cli.screen import Screen, answer, screen
from irtool.cli.screen import out as console
from irtool.cli.tables import chain_table, comparison_table
from irtool.hosts.torch.graph import FxGraph
from irtool.passes.prune import Constants
from irtool.train import Data, History, sparse
from irtool.workflows.compress.built import FILES, Built, Compressed, compress_graph, original, report_of, timed, torch_threads
from irtool.workflows.compress.settings import Settings
from irtool.workflows.demo import Demo, demo_settings
from irtool.workflows.folders.output_folder import output_folder
from irtool.workflows.folders.run_folder import write_run_page
from irtool.workflows.loading.data import TRACE_BATCH
from irtool.workflows.loading.models import fingerprint

_VARIANTS: tuple[tuple[float, Constants], ...] = ((0.5, "absorb"), (0.7, "drop"), (0.7, "absorb"))
_SOURCE = {"model": None, "weights": None, "data": "digits", "limit": None, "image_size": None}


def demo(
    quick: Annotated[bool, typer.Option("--quick", help="Train for six epochs only: shows that everything works, not how well.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Keep the files here; without it they are made, checked and removed.")
    ] = None,
) -> None:
    """Train a small net on scikit-learn's digits, prune it, fold it, export it, check every step, and show what it brought.

    Example: irtool demo --out demo
    """
    ingredients = demo_settings(quick=quick)
    with _folder(out) as folder, scratch_folder() as scratch, screen() as progress:
        data = ingredients.data(progress)
        graph, history = _trained(ingredients, data, progress)
        settings = {_name(*variant): _settings(*variant, quick=quick) for variant in _VARIANTS}
        first = original(graph, data, scratch, Settings(), {}, progress)
        made = {name: _compressed(graph, data, folder / name, chosen, progress) for name, chosen in settings.items()}
        for name in made:
            history.write_csv(folder / name / "history.csv")
        facts = _show(first, made, settings, data, folder, progress, quick)
    answer({"folder": str(out) if out is not None else None, "runs": facts})
    console().print(f"\nwritten to {out}/: {', '.join(made)}" if out is not None else "\nThe files are gone; --out FOLDER keeps them.")


@contextlib.contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    with output_folder(out) if out is not None else scratch_folder() as folder:
        yield folder


def _name(ratio: float, constants: str) -> str:
    return f"{constants}-{ratio:g}"


def _settings(ratio: float, constants: Constants, *, quick: bool) -> Settings:
    return Settings({"criterion": "bn_scale", "ratio": ratio, "scope": "global", "round_to": 1}, constants, runs=20 if quick else 50)


def _trained(ingredients: Demo, data: Data, progress: Screen) -> tuple[FxGraph, History]:
    model = ingredients.model()
    # One thread: the same numbers on every machine, and on a busy one threads that wait for each other are slower than one.
    with progress.stage("train with an L1 penalty on batch norm scales"), torch_threads(1):
        history = sparse(model, data, ingredients.settings, strength=ingredients.strength, progress=progress)
    last = history.last
    progress.show(
        f"trained VGG-{ingredients.depth} (width {ingredients.width:g}) on {len(data.train):,} digits for {last.epoch} epochs: "
        f"{100 * (last.test_accuracy or 0):.1f} % of {len(data.test)} test images, {100 * last.extra['small_scales']:.0f} % of batch norm scales near zero\n"
    )
    images = data.sample(TRACE_BATCH)
    # Training may leave the weights channels-last, in which single images are slow: not what to compare latencies with.
    return trace(model.to(memory_format=torch.contiguous_format).eval(), images), history


def _compressed(graph: FxGraph, data: Data, folder: Path, settings: Settings, progress: Screen) -> Compressed:
    folder.mkdir()
    return compress_graph(graph, data, folder, settings, progress)


def _show(
    first: Built, made: dict[str, Compressed], settings: dict[str, Settings], data: Data, folder: Path, progress: Screen, quick: bool
) -> dict[str, Any]:
    """Time the models side by side, write each one's report and page, show them; returns the reports as data."""
    before, *after = timed([first, *(done.built for done in made.values())], Settings(runs=20 if quick else 50), progress)
    source = {**_SOURCE, "inputs": [list(first.graph.inputs[0].sizes)], "fingerprint": fingerprint(first.graph)}
    facts = {}
    for (name, done), model in zip(made.items(), after, strict=True):
        report = report_of(before.measured, model.measured, model.ratios, done, source, settings[name], data)
        report.write(folder / name / FILES["report"])
        facts[name] = report.to_dict()
        write_run_page(folder / name, first.graph, done.built.graph, f"VGG on scikit-learn's digits, {name.replace('-', ' ')}")
    last = list(made.values())[-1]
    columns = [("before", before.measured), *((name.replace("-", " "), model.measured) for name, model in zip(made, after, strict=True))]
    table = comparison_table(columns, "scikit-learn's digits, by what becomes of the constants and by ratio")
    progress.show(last.plan.summary() + "\n", chain_table(last.chain), "", table)
    return facts
