"""`irtool train`: one training stage on the user's own model and data."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import irtool
from irtool.archive import save
from irtool.atomic_files import replacing
from irtool.cli import options
from irtool.cli.flags import with_flags
from irtool.cli.screen import Screen, answer, screen
from irtool.cli.screen import out as console
from irtool.commit import committed
from irtool.errors import FileError
from irtool.hosts.torch.graph import FxGraph
from irtool.train import Data, History, Settings
from irtool.train.checkpoint import check_facts
from irtool.train.stages import STAGES
from irtool.train.stages import train as train_stage
from irtool.workflows.folders.output_folder import TRAIN, claimed, keep_inputs, model_files, read_object
from irtool.workflows.loading.data import DataOptions, known_preprocessing
from irtool.workflows.loading.model_inputs import input_shapes
from irtool.workflows.loading.models import MODEL_FILE
from irtool.workflows.loading.trainable import data_stamp, trainable

HISTORY_FILE = "train.json"
DATA_FILE = "train-data.json"
"""The data as they were when the run began."""


class Stage(StrEnum):
    """The keys of `STAGES`."""

    PLAIN = "plain"
    SPARSE = "sparse"
    FINETUNE = "finetune"
    DISTILL = "distill"
    QAT = "qat"


@dataclass(frozen=True)
class StageOptions:
    """Options of one stage each.

    Args:
        alpha: distill: the teacher's weight against the labels; default 0.9.
        temperature: distill: default 3; larger is softer.
        cache: distill: run the teacher once, on the images as they are.
        strength: sparse: a number (1e-4 to 1e-3 are usual), FROM:TO for a ramp, or auto; default 1e-4.
        share: sparse, auto: the wanted share of small scales; default 0.5.
        bound: sparse, auto: how much the loss may rise; default 0.2.
        engine: qat: the engine whose int8 file is trained for; default onnxruntime.
        weight_bits: qat: 2 to 8; default the engine's own.
        weights_only: qat: round weights alone.
    """

    alpha: float | None = None
    temperature: float | None = None
    cache: bool | None = None
    strength: str | None = None
    share: float | None = None
    bound: float | None = None
    engine: str | None = None
    weight_bits: int | None = None
    weights_only: bool | None = None


@with_flags(Settings, leave_out=("out", "seed"), defaults={"lr": " Default 0.1; 0.01 to finetune and to distill."}, panel="Training")
@with_flags(StageOptions, panel="Stage")
def train(
    model: options.ModelArgument,
    data: Annotated[str, typer.Option("--data", "-d", help="See irtool compress --help.", metavar="DATA")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for the model, the checkpoints and the log.")],
    stage: Annotated[
        Stage, typer.Option(help="From scratch; towards small batch norm scales; further, gently; towards a teacher; with int8 rounding.")
    ] = Stage.PLAIN,
    weights: options.Weights = None,
    teacher: Annotated[str | None, typer.Option(help="distill: the model to learn from, written as MODEL is.", metavar="MODEL")] = None,
    teacher_weights: Annotated[Path | None, typer.Option(help="distill: its weights.", metavar="FILE")] = None,
    mean: options.Mean = None,
    std: options.Std = None,
    limit: options.Limit = None,
    image_size: options.ImageSize = None,
    inputs: options.Inputs = None,
    seed: Annotated[int, typer.Option(help="Of first weights, order, augmentation, mixup and dropout.")] = 0,
    **chosen: Any,
) -> None:
    """Train a model: from scratch, sparse, finetuned, distilled, or with the rounding of an int8 file.

    Writes model.safetensors (trainable further, and what irtool compress takes), last.pt and best.pt each epoch, log.csv and
    train.json. Killed runs go on with --resume. The same under torchrun: torchrun --nproc-per-node 2 -m irtool train ...

    Example: irtool train VGG:depth=16 --stage sparse --strength auto --data cifar10.zip --epochs 40 --out sparse
    """
    own: dict[str, Any] = {field.name: chosen.pop(field.name) for field in fields(StageOptions)}
    given = {name: value for name, value in chosen.items() if value is not None} | {"out": out, "seed": seed}
    Settings.merged(STAGES[stage].settings, given)  # a mistake is better told before the data is read
    read = [*model_files(model, weights), *(model_files(teacher, teacher_weights) if teacher is not None else ())]
    keep_inputs((out / name for name in (MODEL_FILE, "last.pt", "best.pt")), read)
    data_options = known_preprocessing(model, DataOptions(data, mean, std, limit, image_size))
    with _folder(out, resumes=bool(given.get("resume"))), _shown() as progress:
        loaded = data_options.load(model, progress)
        assert loaded is not None
        if _first_process():
            _same_data(out, data_options)
        graph = STAGES[stage].begun(trainable(model, weights, loaded, input_shapes(inputs), seed))
        if teacher is not None:
            own["teacher"] = trainable(teacher, teacher_weights, loaded, (), seed)
        history = train_stage(stage, graph, loaded, given, own, progress)
        if _first_process():
            source = {"model": model, "weights": str(weights) if weights else None, "teacher": teacher, **data_options.record()}
            keep(graph, history, loaded, out, {"command": command_line(), "source": source})
    if _first_process():
        answer({"folder": str(out), "test_images": len(loaded.test), **history.to_dict()})
        console().print(told(history, loaded))
        console().print(f"written to {out}: {MODEL_FILE}, last.pt, best.pt, log.csv, {HISTORY_FILE}, {DATA_FILE}")


def keep(graph: FxGraph, history: History, data: Data, folder: Path, facts: dict[str, Any]) -> None:
    """Write the trained model and what is known about its training.

    Raises:
        FileError: the folder cannot be written.
    """
    with committed(folder) as new:
        _keep(graph, history, data, new, facts)


def _keep(graph: FxGraph, history: History, data: Data, folder: Path, facts: dict[str, Any]) -> None:
    save(graph, folder / MODEL_FILE, preprocessing=data.preprocessing.to_dict(), metadata={"classes": list(data.classes)})
    record = {
        "irtool": irtool.__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        **facts,
        "test_images": len(data.test),
    }
    with replacing(folder / HISTORY_FILE) as temporary:
        temporary.write_text(json.dumps({**record, **history.to_dict()}, indent=1) + "\n", encoding="utf-8")


def told(history: History, data: Data) -> str:
    """The result in a sentence: the last epoch, which nobody chose by the test images."""
    last, seconds = history.last, sum(record.seconds for record in history.records)
    extra = f", {100 * last.extra['small_scales']:.0f} % of batch norm scales near zero" if "small_scales" in last.extra else ""
    return (
        f"{100 * (last.test_accuracy or 0):.2f} % of {len(data.test):,} test images after {last.epoch} epochs "
        f"on {len(data.train):,} images, {seconds:.0f} s{extra}"
    )


def command_line() -> str:
    """The command as it was typed, for the records."""
    return " ".join(["irtool", *sys.argv[1:]])


@contextlib.contextmanager
def _folder(out: Path, *, resumes: bool) -> Iterator[None]:
    """Claim the folder. Under torchrun the first process does it for all."""
    if not _first_process():
        yield
        return
    with claimed(out, TRAIN, kept="The finished epochs are kept: add --resume to go on."):
        if (out / "last.pt").exists() and not resumes:
            raise FileError("holds an earlier run", where=str(out), remedy="Add --resume to continue it, or choose another --out.")
        try:
            yield
        finally:
            if not (out / "last.pt").exists():
                (out / DATA_FILE).unlink(missing_ok=True)


def _same_data(out: Path, options: DataOptions) -> None:
    """Note what the data are; a run that goes on must find those that it was begun with.

    Raises:
        TrainError: they were changed.
    """
    path = out / DATA_FILE
    size = options.image_size
    sides = [size, size] if isinstance(size, int) else size
    facts = {
        **options.record(),
        "image_size": sides,
        "mean": options.mean,
        "std": options.std,
        "data": data_stamp(options.source) or options.source,
    }
    text = json.dumps(facts, indent=1) + "\n"
    begun = read_object(path)
    if begun and (out / "last.pt").exists():
        check_facts(path, begun, json.loads(text))
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def _shown() -> Iterator[Screen]:
    """Progress of the first process only: under torchrun all write to one terminal."""
    if _first_process():
        with screen() as progress:
            yield progress
    else:
        yield Screen(None)
