"""Statements of a report about the original and how it was compressed: anybody may have written it, so it is checked before it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal, NoReturn, Self

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from irtool.errors import FileError, OptionError
from irtool.hosts.onnx.files.given import Given
from irtool.workflows.loading.models import LARGEST_INPUT, names_code, saved_model
from irtool.workflows.loading.spec import ModelSpec

LARGEST_MODEL, MOST_PARAMETERS = 1 << 30, 20_000
"""Numbers (4 GiB of float32) and tensors in a model that a report names by its arguments."""
_DOWNLOADED = ("weights", "pretrained")
"""How arguments of torchvision's models begin that name weights."""
_MOST_IMAGES = 2**31


@dataclass(frozen=True)
class Recorded:
    """The part of a report that `irtool verify` goes by.

    Attributes:
        model, weights: how to get the original; None where the report names none.
        inputs: shapes of its inputs.
        fingerprint: of its weights.
        data, limit, image_size, mean, std: the images; `data` is None if there were none.
        constants: what became of constants.
        calibrate: how many images were looked at; 0 for none.
        refits: whether layers were refitted, on them or on noise.
        files: kinds of files that were written.
        values: of inputs of an ONNX file whose value decides what is computed, by name.
    """

    model: str | None
    weights: Path | None
    inputs: tuple[tuple[int, ...], ...]
    fingerprint: str
    data: str | None
    limit: int | None
    image_size: int | tuple[int, int] | None
    mean: str | None
    std: str | None
    constants: Literal["absorb", "drop"]
    calibrate: int
    refits: bool
    files: frozenset[str]
    values: Given

    @classmethod
    def of(cls, record: Mapping[str, Any], place: Path) -> Recorded:
        """Read a report.

        Raises:
            FileError: something in it is not of its kind; the text says what.
        """
        check = _Check(place)
        source, options = check.table(record, "source"), check.table(record, "options")
        known = check.table(record, "preprocessing") if record.get("preprocessing") is not None else {}
        weights, size = check.value(source, "weights", _text), check.value(source, "image_size", _size)
        refit = check.value(options, "reconstruct", _count) or 0
        return cls(
            check.value(source, "model", _text),
            Path(weights) if weights else None,
            check.value(source, "inputs", _shapes) or (),
            check.value(source, "fingerprint", _text) or "",
            check.value(source, "data", _text),
            check.value(source, "limit", _count),
            size,
            check.value(known, "mean", _numbers),
            check.value(known, "std", _numbers),
            check.value(options, "constants", _constants) or "absorb",
            refit or check.value(options, "calibrate", _count) or 0,
            bool(refit) or options.get("noise") is True,
            frozenset(check.table(record, "files")),
            check.value(source, "values", _values) or {},
        )


def require_harmless(model: str) -> None:
    """Refuse a model that a file names and that is code, since only the user may say what is run, or that fits no memory.

    Raises:
        OptionError: it is code, a download, too large, cannot be built, or is no name of a model.
        FileError: it looks like a file and is not there.
    """
    remedy = "If it is yours, name it: --model " + model[:200]
    if names_code(model):
        raise OptionError("the report names code, and irtool runs none that a file names", where=model[:200], remedy=remedy)
    if saved_model(model) is None:
        spec = ModelSpec.parse(model)
        if any(value for name, value in spec.arguments.items() if name.startswith(_DOWNLOADED)):
            raise OptionError("the report names weights that torchvision downloads", where=model[:200], remedy=remedy)
        with torch.random.fork_rng(devices=[]), _Bounded(f"{model[:200]} of a report", remedy):
            spec.build()


class _Bounded(TorchFunctionMode):
    """While a model is built: its tensors, together, have at most `LARGEST_MODEL` numbers, and it has at most `MOST_PARAMETERS`."""

    def __init__(self, model: str, remedy: str) -> None:
        super().__init__()
        self._model, self._remedy = model, remedy
        self._numbers = self._parameters = 0

    def __enter__(self) -> Self:
        self._hook = register_module_parameter_registration_hook(self._count)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._hook.remove()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Memory that `torch.empty` gives is taken when it is written to: by then its size has been seen here."""
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.numel() > LARGEST_MODEL:
            self._refuse()
        return made

    def _count(self, _module: Any, _name: str, parameter: torch.Tensor | None) -> None:
        self._parameters += 1
        self._numbers += 0 if parameter is None else parameter.numel()
        if self._parameters > MOST_PARAMETERS or self._numbers > LARGEST_MODEL:
            self._refuse()

    def _refuse(self) -> NoReturn:
        what = f"has more than {LARGEST_MODEL:,} numbers or {MOST_PARAMETERS:,} parameters"
        raise OptionError(what, where=self._model, remedy=self._remedy)


def _text(value: Any) -> str | None:
    """A text that can be the name of a file."""
    if not isinstance(value, str) or "\0" in value or len(value) >= 4096:
        return None
    try:
        value.encode()
    except UnicodeEncodeError:  # half a surrogate
        return None
    return value


def _count(value: Any) -> int | None:
    return int(value) if isinstance(value, int) and 0 <= value < _MOST_IMAGES else None


def _size(value: Any) -> int | tuple[int, int] | None:
    if isinstance(value, list):
        sides = [side for side in map(_count, value) if side is not None]
        return (sides[0], sides[1]) if len(value) == len(sides) == 2 else None
    return _count(value)


def _shapes(value: Any) -> tuple[tuple[int, ...], ...] | None:
    if not isinstance(value, list) or not all(isinstance(shape, list) for shape in value):
        return None
    if not all(isinstance(size, int) and 0 < size <= LARGEST_INPUT for shape in value for size in shape):
        return None
    fits = all(len(shape) < 16 for shape in value) and sum(map(prod, value)) <= LARGEST_INPUT
    return tuple(tuple(shape) for shape in value) if fits else None


def _values(value: Any) -> Given | None:
    if not isinstance(value, dict) or len(value) > 64:
        return None
    numbers = [entry if isinstance(entry, list) else [entry] for entry in value.values()]
    fits = all(len(entry) <= 64 and all(isinstance(number, int | float) for number in entry) for entry in numbers)
    return value if fits else None


def _numbers(value: Any) -> str | None:
    if not isinstance(value, list) or len(value) > 64 or not all(isinstance(number, int | float) for number in value):
        return None
    return ",".join(map(str, value))


def _constants(value: Any) -> Literal["absorb", "drop"] | None:
    return "absorb" if value == "absorb" else "drop" if value == "drop" else None


@dataclass(frozen=True)
class _Check:
    place: Path

    def table(self, record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        found = record.get(name)
        if not isinstance(found, Mapping):
            raise self._malformed(name)
        return found

    def value(self, table: Mapping[str, Any], name: str, read: Callable[[Any], Any]) -> Any:
        """None where nothing is told."""
        value = table.get(name)
        if value is None:
            return None
        found = read(value)
        if found is None:
            raise self._malformed(name)
        return found

    def _malformed(self, name: str) -> FileError:
        return FileError(f"malformed: its {name!r} is none", where=str(self.place), remedy="Run irtool compress again.")
