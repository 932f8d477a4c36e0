"""Session: a model loaded in an engine. It has named inputs and outputs; numpy arrays go in and come out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from irtool.errors import BackendError, FileError, OptionError


@dataclass(frozen=True)
class TensorSpec:
    """One input or output.

    Attributes:
        name: as the model file has it.
        shape: a size per axis, None where any size will do; None as a whole if the rank is not known.
        dtype: numpy's name of the element type.
    """

    name: str
    shape: tuple[int | None, ...] | None
    dtype: str

    def __str__(self) -> str:
        shape = "shape unknown" if self.shape is None else "x".join("N" if size is None else str(size) for size in self.shape)
        return f"{self.name}: {self.dtype} {shape or 'scalar'}"

    def takes(self, array: np.ndarray) -> bool:
        """Whether the array has this element type, rank and sizes."""
        if str(array.dtype) != self.dtype:
            return False
        if self.shape is None:
            return True
        return array.ndim == len(self.shape) and all(a in (b, None) for a, b in zip(self.shape, array.shape, strict=True))


class Session(Protocol):
    """An engine with a model loaded. `engine` names it; specs and arrays are in the order of the model."""

    engine: str

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...
    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...
    def run(self, *arrays: np.ndarray) -> list[np.ndarray]: ...


def checked(engine: str, specs: Sequence[TensorSpec], arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The arrays, contiguous, if they fit the inputs.

    Raises:
        BackendError: the number of arrays, an element type, a rank or a size is not the model's.
    """
    wanted = "; ".join(map(str, specs))
    if len(arrays) != len(specs):
        raise BackendError(f"{len(arrays)} arrays for {len(specs)} inputs", where=engine, remedy=f"Pass one array per input: {wanted}.")
    for spec, array in zip(specs, arrays, strict=True):
        if not isinstance(array, np.ndarray):
            raise BackendError(
                f"input {spec.name!r} is a {type(array).__name__}, not a numpy array",
                where=engine,
                remedy="Pass tensor.detach().cpu().numpy().",
            )
        if not spec.takes(array):
            given = f"{array.dtype} {'x'.join(map(str, array.shape)) or 'scalar'}"
            raise BackendError(f"input {spec.name!r} cannot be {given}", where=engine, remedy=f"Pass an array of {spec}.")
        if 0 in array.shape:
            raise BackendError(f"input {spec.name!r} is empty: {array.shape}", where=engine, remedy="Pass at least one sample.")
    return [np.ascontiguousarray(array).reshape(array.shape) for array in arrays]


def run_failed(reason: object, path: Path) -> BackendError:
    """The error of a session whose engine failed to run the model of a file."""
    remedy = "Check that the model is meant for these sizes; a batch written into the graph as a number cannot change."
    return BackendError(f"running failed: {reason}", where=str(path), remedy=remedy)


def check_runs(runs: int, where: str) -> None:
    """Refuse to profile less than one run.

    Raises:
        OptionError: `runs` below 1.
    """
    if runs < 1:
        raise OptionError(f"runs={runs}", where=where, remedy="Profile at least one run.")


def model_file(path: str | os.PathLike[str], kind: str) -> Path:
    """The path, if something that can be a model file lies there.

    Raises:
        FileError: nothing there, a folder, no permission, or an empty file.
    """
    file = Path(path)
    remedy = f"Give the path of a file of type {kind}."
    try:
        if not file.is_file():
            raise FileError("is a folder" if file.is_dir() else "no such file", where=str(file), remedy=remedy)
        with file.open("rb") as handle:
            if not handle.read(1):
                raise FileError("the file is empty", where=str(file), remedy="Write it again: whatever wrote it was stopped.")
    except OSError as error:
        raise FileError(f"cannot be read ({error.strerror})", where=str(file), remedy=remedy) from error
    return file


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_count(threads: int | None) -> int:
    """`threads`, or the cores that this process may use: every engine then gets the same number.

    Raises:
        BackendError: fewer than one.
    """
    if threads is None:
        return cores()
    if threads < 1:
        raise BackendError(f"threads={threads}", remedy="Ask for one thread or more, or leave it out for all cores.")
    return threads
