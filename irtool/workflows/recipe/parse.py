"""Recipes: a TOML file that chains training stages and passes, read and checked as a whole before anything runs.

model = "VGG:depth=16"      # as on the command line; also weights, data, limit, image_size, mean, std, seed
data = "cifar10.zip"

[settings]                  # for every step that has such an option
batch_size = 64

[[step]]
do = "sparse"               # a key of KINDS; an optional name; all else are that step's options
strength = 1e-3
"""

from __future__ import annotations

import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from irtool.atomic_files import read_text
from irtool.errors import FileError, IrtoolError, OptionError
from irtool.train import Settings
from irtool.workflows.loading.data import DataOptions
from irtool.workflows.loading.models import names_code, saved_model
from irtool.workflows.loading.spec import ModelSpec
from irtool.workflows.recipe.kind import Kind
from irtool.workflows.recipe.kinds import KINDS, SETTINGS

LARGEST = 2**20
"""Bytes of a recipe."""
_MOST_STEPS, _MOST_TOLD = 200, 50
"""Steps, and mistakes of which an error tells."""
_MOST_DOTS = 50
"""In a line: tomllib takes memory by the square of the parts of a key."""
BASE: dict[str, Any] = {"model": str, "weights": str, "data": str, "limit": int, "image_size": int, "mean": str, "std": str, "seed": int}
"""Keys that may stand at the top of a recipe."""
_TYPES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", tuple: "a list", list: "a list"}
Place = tuple[str, int, str]
"""(table, its number, key); the key is empty for the table's header."""


@dataclass(frozen=True)
class Mistake:
    """A mistake in a recipe, and its place."""

    line: int
    text: str


class RecipeError(OptionError):
    """A recipe with mistakes: all of them, in the order of their lines."""

    def __init__(self, path: Path, mistakes: Sequence[Mistake]) -> None:
        self.mistakes = tuple(sorted(mistakes, key=lambda mistake: mistake.line))
        more = len(self.mistakes) - _MOST_TOLD
        listed = "; ".join(f"line {mistake.line}: {mistake.text}" for mistake in self.mistakes[:_MOST_TOLD])
        listed += f"; and {more:,} more" if more > 0 else ""
        super().__init__(listed, where=str(path))


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        do: a key of `KINDS`.
        name: unique in its recipe; other steps may speak of it.
        options: as written, the recipe's settings included as far as the step has such options.
    """

    do: str
    name: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Recipe:
    """A recipe without a mistake that can be seen without running it."""

    model: str
    weights: Path | None
    data: DataOptions
    seed: int
    steps: tuple[Step, ...]


def read_recipe(path: Path, data: str | None = None) -> Recipe:
    """Read and check a recipe.

    Args:
        path: a TOML file. Paths in it are relative to the working folder, as on the command line.
        data: takes the place of the recipe's `data`.

    Raises:
        FileError: it cannot be read.
        RecipeError: it has mistakes; each is named with its line.
    """
    try:
        text = read_text(path, LARGEST)
        if any(line.count(".") > _MOST_DOTS for line in text.splitlines()):
            raise ValueError(f"a line with more than {_MOST_DOTS} dots")
        plain = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"\s*\(at line (\d+), column \d+\)|\s*\(at end of document\)", str(error))
        line = int(found[1]) if found and found[1] else text.count("\n") + 1
        raise RecipeError(path, [Mistake(line, f"not TOML: {str(error)[: found.start()] if found else error}")]) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
        raise FileError(f"cannot be read{reason}", where=str(path), remedy="Give the path of a recipe (TOML, UTF-8).") from error
    except (ValueError, RecursionError) as error:  # a number of very many digits, brackets in brackets
        what = "nested too deep" if isinstance(error, RecursionError) else str(error).partition(";")[0]
        raise FileError(f"cannot be read as TOML ({what})", where=str(path), remedy="No recipe needs that: write it again.") from error
    check = _Check(places(text))
    recipe = check.recipe(plain, data)
    if check.mistakes:
        raise RecipeError(path, check.mistakes)
    return recipe


def places(text: str) -> dict[Place, int]:
    """The line of each table header and each key: tomllib tells values only."""
    table, counts, found = ("", 0), dict[str, int](), {("", 0, ""): 1}
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[\[?\s*([\w-]+)\s*\]\]?\s*(#.*)?$", line):
            table = (header[1], counts.get(header[1], 0))
            counts[header[1]] = table[1] + 1
            found[(*table, "")] = number
        elif key := re.match(r"\s*[\"']?([\w-]+)[\"']?\s*=", line):
            found.setdefault((*table, key[1]), number)
    return found


def _require_model(model: str) -> None:
    """Build what irtool or torchvision brings, to find mistakes. Code of a recipe's own is run when the recipe is: to read it runs nothing.

    Raises:
        IrtoolError: it cannot be, or is not there.
    """
    if not names_code(model):
        if saved_model(model) is None:
            ModelSpec.parse(model).build()
    elif (place := ModelSpec.parse(model).place).endswith(".py") and not Path(place).is_file():
        raise FileError("no such file", where=place, remedy="Paths in a recipe are relative to the working folder.")


@dataclass
class _Check:
    """The mistakes so far."""

    lines: Mapping[Place, int]
    mistakes: list[Mistake] = field(default_factory=list)

    def wrong(self, place: Place, text: str) -> None:
        line = self.lines.get(place) or self.lines.get((*place[:2], "")) or 1
        self.mistakes.append(Mistake(line, " ".join(text.split())))

    def recipe(self, plain: Mapping[str, Any], data: str | None) -> Recipe:
        base = {key: value for key, value in plain.items() if key not in ("settings", "step")}
        if data is not None:
            base["data"] = data
        self._base(base)
        settings = plain.get("settings", {})
        if isinstance(settings, Mapping):
            self._values(("settings", 0), settings, SETTINGS, _check_setting)
        else:
            self.wrong(("", 0, "settings"), "settings must be a table: [settings]")
        steps = plain.get("step", [])
        if isinstance(steps, list) and len(steps) > _MOST_STEPS:
            self.wrong(("step", _MOST_STEPS, ""), f"{len(steps):,} steps: a recipe may have {_MOST_STEPS}")
            steps = steps[:_MOST_STEPS]
        if not isinstance(steps, list) or not steps or not all(isinstance(step, Mapping) for step in steps):
            self.wrong(("", 0, "step"), f"no steps: write [[step]] with do = one of {', '.join(KINDS)}")
            steps = []
        made = [self._step(number, step, steps[:number], base, settings) for number, step in enumerate(steps)]
        source, mean, std, limit, size = (base.get(name) for name in ("data", "mean", "std", "limit", "image_size"))
        options = DataOptions(source, mean, std, limit, size)
        weights = base.get("weights")
        return Recipe(
            str(base.get("model", "")), Path(weights) if isinstance(weights, str) else None, options, base.get("seed", 0), tuple(made)
        )

    def _base(self, base: Mapping[str, Any]) -> None:
        self._values(("", 0), base, BASE, lambda name, value: None)
        model, weights = base.get("model"), base.get("weights")
        if model is None:
            self.wrong(("", 0, "model"), 'no model: write model = "PreResNet:depth=38", say')
        elif isinstance(model, str):
            self._try(("", 0, "model"), lambda: _require_model(model))
        if "data" not in base:
            self.wrong(("", 0, "data"), 'no data: write data = "cifar10.zip", say, or give --data')
        if isinstance(weights, str) and not Path(weights).is_file():
            self.wrong(("", 0, "weights"), f"weights: no such file: {weights}")

    def _step(
        self, number: int, step: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]], base: Mapping[str, Any], settings: Any
    ) -> Step:
        place, do = ("step", number), step.get("do")
        kind = KINDS.get(do) if isinstance(do, str) else None
        if kind is None:
            told = "a step needs do" if do is None else f"no step is called {do!r}"
            self.wrong((*place, "do"), f"{told}: choose one of {', '.join(KINDS)}")
            return Step(str(do), str(do), {})
        options = {key: value for key, value in step.items() if key not in ("do", "name")}
        told_before = len(self.mistakes)
        self._values(place, options, kind.options, kind.check)
        together = kind.together(options) if len(self.mistakes) == told_before else {}
        for option, text in together.items():
            self.wrong((*place, option), text)
        for missing in sorted(set(kind.required) - set(options)):
            self.wrong((*place, ""), f"{do} needs {missing}")
        self._order(number, do, kind, options, earlier)
        name = step.get("name", do)
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]{0,49}", name) or name == "original":  # a folder is called so
            told = f"{name[:50]}..." if isinstance(name, str) and len(name) > 50 else name
            self.wrong((*place, "name"), f"name {told!r}: use letters, digits, dots, - and _, 50 at most, and not original")
        if name in [other.get("name", other.get("do")) for other in earlier]:
            self.wrong((*place, "name" if "name" in step else "do"), f"the name {name!r} is taken: give this step another name")
        shared = {key: value for key, value in settings.items() if key in kind.options} if isinstance(settings, Mapping) else {}
        return Step(str(do), str(name), {**shared, **options})

    def _order(self, number: int, do: Any, kind: Kind, options: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]]) -> None:
        """Check that the steps before have made what this one needs."""
        place, done = ("step", number), [other.get("do") for other in earlier]
        if kind.before_fold and "fold" in done:
            self.wrong((*place, "do"), f"{do} after fold: the batch norms are gone; move fold behind it")
        if kind.after and kind.after not in done:
            self.wrong((*place, "do"), f"{do} needs a step {kind.after} before it")
        teacher = options.get("teacher")
        if isinstance(teacher, str) and teacher not in ["original", *(other.get("name", other.get("do")) for other in earlier)]:
            self.wrong((*place, "teacher"), f"teacher {teacher!r} is no earlier step: give a step's name, or original")

    def _values(self, table: tuple[str, int], values: Mapping[str, Any], known: Mapping[str, Any], check: Any) -> None:
        """Unknown names, wrong types, and values that can never work."""
        for name, value in values.items():
            if name not in known:
                self.wrong((*table, name), f"{name} is unknown here: known are {', '.join(known) or 'none'}")
            elif not _fits(known[name], value):
                self.wrong((*table, name), f"{name} = {value!r} must be {_wanted(known[name])}")
            else:
                self._try((*table, name), lambda name=name, value=value: check(name, value))

    def _try(self, place: Place, work: Any) -> None:
        try:
            work()
        except IrtoolError as error:
            self.wrong(place, str(error))


def _check_setting(name: str, value: Any) -> None:
    Settings.merged(Settings(), {name: value})


def _fits(hint: Any, value: Any) -> bool:
    if isinstance(hint, types.UnionType):
        return any(_fits(one, value) for one in typing.get_args(hint))
    plain = typing.get_origin(hint) or hint
    if plain is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if plain is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if plain is tuple:
        return isinstance(value, list) and all(_fits(typing.get_args(hint)[0], item) for item in value)
    return isinstance(value, plain)


def _wanted(hint: Any) -> str:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return " or ".join(_TYPES[typing.get_origin(one) or one] for one in options if one is not types.NoneType)
