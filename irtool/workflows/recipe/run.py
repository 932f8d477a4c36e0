"""Running a recipe: each step's result is kept, and a later run goes on at the first step that is not done or was changed."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import irtool
from irtool.analysis.cost import cost
from irtool.archive import load, save
from irtool.atomic_files import parse_json, read_text, replacing
from irtool.errors import FileError
from irtool.hosts.torch.graph import FxGraph
from irtool.progress import Reporter
from irtool.temporary import new_name, sweep
from irtool.train import Data, evaluate
from irtool.workflows.compress.built import FILES
from irtool.workflows.folders.output_folder import RECIPE, claimed, keep_inputs, model_files
from irtool.workflows.folders.steps import STATE as STATE_FILE
from irtool.workflows.folders.steps import SUMMARY as SUMMARY_FILE
from irtool.workflows.loading.data import known_preprocessing
from irtool.workflows.loading.trainable import data_stamp, trainable
from irtool.workflows.recipe.kind import Context, Made
from irtool.workflows.recipe.kinds import KINDS
from irtool.workflows.recipe.parse import Recipe, Step, read_recipe

FORMAT = 1
"""Part of every key: a step made by another version of this file is made again."""
_ORIGINAL = Step("original", "original", {})


@dataclass(frozen=True)
class RecipeRun:
    """The result of `run_recipe`.

    Attributes:
        folder: holds a folder for each step, and recipe.json.
        steps: the state of each: its name, accuracy, params, macs, seconds, notes.
        kept: the names of those that were done before.
    """

    folder: Path
    steps: tuple[Mapping[str, Any], ...]
    kept: tuple[str, ...]


def run_recipe(path: Path, out: Path, data: str | None = None, progress: Reporter | None = None) -> RecipeRun:
    """Check a recipe, and run what is not done yet.

    Args:
        path: the TOML file.
        out: the folder for what the steps make.
        data: in place of the recipe's own.
        progress: is told what is being done.

    Raises:
        RecipeError: the recipe has mistakes, each with its line; nothing was run.
        IrtoolError: a step failed. The steps before it are kept.
    """
    recipe = read_recipe(path, data)
    with claimed(out, RECIPE, kept="What was finished is kept: the same command goes on there."):
        runner = _Runner(recipe, out, progress or Reporter())
        states = runner.run()
    return RecipeRun(out, tuple(states), tuple(runner.kept))


@dataclass
class _Runner:
    recipe: Recipe
    out: Path
    progress: Reporter

    def run(self) -> list[dict[str, Any]]:
        """All steps, done or to be done; returns their states. `kept` names those done before."""
        self._data: Data | None = None
        self.folders: dict[str, Path] = {}
        self.kept: list[str] = []
        recipe, states = self.recipe, []
        steps = {self.out / f"{number:02d}-{step.name}": step for number, step in enumerate((_ORIGINAL, *recipe.steps))}
        keep_inputs(steps, model_files(recipe.model, recipe.weights))
        key = _digest(
            {"format": FORMAT, "model": recipe.model, "seed": recipe.seed, "weights": _stamp(recipe.weights), "data": self._data_key()}
        )
        for folder, step in steps.items():
            key = _digest({"before": key, "do": step.do, "name": step.name, "options": dict(step.options)})
            state = _done(folder, key)
            if state is None:
                (self.out / SUMMARY_FILE).unlink(missing_ok=True)  # it speaks of what is about to change
                state = self._step(step, folder, key)
            else:
                self.kept.append(step.name)
            states.append(state)
            self.folders |= {step.name: folder, step.do: folder}
            self.last = folder
        with replacing(self.out / SUMMARY_FILE) as temporary:
            temporary.write_text(json.dumps({"irtool": irtool.__version__, "steps": states}, indent=1) + "\n", encoding="utf-8")
        return states

    def _step(self, step: Step, folder: Path, key: str) -> dict[str, Any]:
        _prepare(folder, key)
        begun = time.perf_counter()
        with self.progress.stage(step.name):
            made = self._made(step, folder)
            score = self._score(made, step.name)
        found = cost(made.graph)
        save(made.graph, folder / FILES["model"], preprocessing=self.data.preprocessing.to_dict())
        state = {
            "key": key, "done": True, "do": step.do, "name": step.name, "options": dict(step.options), "accuracy": score,
            "test_images": len(self.data.test), "params": found.params, "macs": found.macs,
            "seconds": round(time.perf_counter() - begun, 2), "notes": list(made.notes), "history": made.history,
        }  # fmt: skip
        _write(folder, state)
        return state

    def _made(self, step: Step, folder: Path) -> Made:
        if step.do == "original":
            return Made(self._original())
        graph = load(self.last / FILES["model"])
        return KINDS[step.do].run(Context(graph, self.data, folder, dict(self.folders), self.recipe.seed, self.progress), step.options)

    def _original(self) -> FxGraph:
        return trainable(self.recipe.model, self.recipe.weights, self.data, (), self.recipe.seed)

    def _score(self, made: Made, name: str) -> float:
        if made.accuracy is not None:
            return made.accuracy
        return evaluate(made.graph, self.data, progress=self.progress, task=f"score {name}").accuracy

    @property
    def data(self) -> Data:
        """The dataset, read when the first step that is not done wants it."""
        if self._data is None:
            self._data = known_preprocessing(self.recipe.model, self.recipe.data).load(self.recipe.model, self.progress)
        assert self._data is not None
        return self._data

    def _data_key(self) -> dict[str, Any]:
        stamp = data_stamp(self.recipe.data.source)
        named = {} if stamp is None else {"source": None}  # wherever they lie: what they hold tells them
        return {**asdict(self.recipe.data), **named, "stamp": stamp}


def _stamp(path: Path | None) -> list[Any] | None:
    """A stamp that tells that a file was changed, without reading all of it."""
    if path is None:
        return None
    found = path.stat()
    return [str(path), found.st_size, found.st_mtime_ns]


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _state(folder: Path) -> dict[str, Any]:
    try:
        found = parse_json(read_text(folder / STATE_FILE))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _done(folder: Path, key: str) -> dict[str, Any] | None:
    state = _state(folder)
    return state if state.get("key") == key and state.get("done") and (folder / FILES["model"]).is_file() else None


def _prepare(folder: Path, key: str) -> None:
    """An empty folder, or one in which this very step was begun: its checkpoint is taken up."""
    sweep(folder)
    if folder.exists() and _state(folder).get("key") != key:
        if not (folder / STATE_FILE).exists() and any(folder.iterdir()):
            raise FileError("is not a folder that a recipe made", where=str(folder), remedy="Choose another --out.")
        retired = folder.parent / new_name()
        folder.rename(retired)  # a folder that is half removed would be nobody's
        shutil.rmtree(retired, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    _write(folder, {"key": key, "done": False})


def _write(folder: Path, state: Mapping[str, Any]) -> None:
    with replacing(folder / STATE_FILE) as temporary:
        temporary.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
