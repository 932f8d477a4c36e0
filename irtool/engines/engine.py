"""The record of an engine: everything in which one inference engine differs from another. Each engine's package makes its own."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from onnx import ModelProto

from irtool.engines.session import Session
from irtool.errors import OptionError
from irtool.quant import Placement, Recipe, Scheme
from irtool.quant.boundaries import Account
from irtool.quant.placement import Int8Policy

Feeds = Sequence[Mapping[str, np.ndarray]]
"""Batches of a model's inputs by name."""


@dataclass(frozen=True)
class Int8:
    """An engine's int8: how its files are written.

    Attributes:
        policy: which tensors and layers are integers.
        scheme: the options of quantisation that suit it.
        activations: the integer types that it takes between layers.
        lowers: whether a scale and a shift becomes a convolution, so that it computes in integers.
        several_inputs: whether models with more than one input can be quantised.
        write: writes the int8 file for a prepared model and its recipe; returns the names of layers that the engine could not take in
            integers.
        write_weights: writes a file whose weights alone are integers, from the float ONNX file; fitted to calibration images, if there are any
            and the engine's file says which integers they are.
        weights_from_least: whether the integers of such a file count up from a channel's least weight; else they are symmetric.
        packs_bits: whether weights of fewer than 8 bits take fewer bytes in its files.
        write_half: writes a file whose weights are half floats, from the float ONNX file; computed in float.
        account: where the int8 file computes in integers, from the file, the prepared model, its placement and one run's image.
        missing: what the engine's build lacks here that int8 gains by, as a clause of a sentence; empty if it lacks nothing.
        remedy: how the file runs with what is lacking, as a sentence; empty where no way is known.
    """

    policy: Int8Policy
    scheme: Scheme
    activations: tuple[str, ...]
    lowers: bool
    several_inputs: bool
    write: Callable[[ModelProto, Recipe, Path], tuple[str, ...]]
    write_weights: Callable[[Path, Path, Scheme, Feeds], object]
    write_half: Callable[[Path, Path], object]
    weights_from_least: bool
    packs_bits: bool
    account: Callable[[Path, ModelProto, Placement, np.ndarray], Account]
    missing: Callable[[], str]
    remedy: Callable[[], str] = lambda: ""

    def bits(self, wanted: int | None, weights_only: bool) -> int:
        """The bits of weights: those that are wanted, else 8 where weights alone are integers, since nothing overflows in float, else the scheme's."""
        return wanted if wanted is not None else 8 if weights_only else self.scheme.weight_bits


@dataclass(frozen=True)
class Engine:
    """An inference engine.

    Attributes:
        name: what users call it, as in `--engine mnn`.
        title: what its file is called in the chain of equality.
        package: the distribution whose version counts.
        module: what Python imports of it.
        suffix: of its files.
        tolerance: the error of outputs that is allowed against onnxruntime on the same ONNX file, relative to the largest output.
        session: opens a file with so many threads; all cores if None.
        convert: writes its file from an ONNX file, and compares the two if the third argument is true; None if it reads ONNX files as they are.
        exact: opens a file as `session` does, so that it rounds as little as the engine can; None if it has one way only.
        inside: opens a file so that it returns one named value from inside; None if the engine shows none.
        between: opens of a file, with so many threads, only what lies between one input and one output; None if it cannot.
        probe: opens a file from elsewhere without harm to this process.
        times: where the time of a file goes, from the arrays of one run: milliseconds by kind of operator, the largest first.
        integers: how int8 files are written; None if its package cannot write any.
        companion: the suffix of a second file that its file is useless without, under the same stem; empty if one file is all.
    """

    name: str
    title: str
    package: str
    module: str
    suffix: str
    tolerance: float
    session: Callable[[Path, int | None], Session]
    convert: Callable[[Path, Path, bool], object] | None
    exact: Callable[[Path], Session] | None
    inside: Callable[[Path, str], Session] | None
    between: Callable[[Path, int, str, str], Session] | None
    probe: Callable[[Path], object]
    times: Callable[[Path, Sequence[np.ndarray]], dict[str, float]]
    integers: Int8 | None
    companion: str = ""

    @property
    def int8(self) -> Int8:
        """How int8 files are written.

        Raises:
            OptionError: its package cannot write any.
        """
        if self.integers is None:
            raise OptionError(f"{self.title} has no int8 files here", where=self.name, remedy="Quantise for another engine.")
        return self.integers

    def files_of(self, path: Path) -> tuple[Path, ...]:
        """The paths of all files that belong to its file: itself, and its companion if it has one."""
        return (path, path.with_suffix(self.companion)) if self.companion else (path,)

    @property
    def kind(self) -> str:
        """The name of its files in reports: the suffix without its dot."""
        return self.suffix.removeprefix(".")

    @property
    def installed(self) -> bool:
        """Whether its package can be imported."""
        return importlib.util.find_spec(self.module) is not None

    @property
    def version(self) -> str:
        """The version of its package, or `absent`."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return "absent"

    def written(self, onnx: Path, folder: Path | None = None, *, verify: bool = True) -> Path:
        """Make its file of an ONNX file, under the same stem, and return where it is: that file itself if it reads it as it is.

        Args:
            onnx: the ONNX file.
            folder: where its own file goes; by default beside the other.
            verify: compare the two on random inputs.

        Raises:
            ExportError: the engine lacks an operator of the file, or computes something else.
            BackendError: the engine is not installed.
        """
        if self.convert is None:
            return onnx
        file = (folder or onnx.parent) / f"{onnx.stem}{self.suffix}"
        self.convert(onnx, file, verify)
        return file
