"""Packages that only a part of irtool needs, and the extra of irtool's that brings each."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from irtool.errors import IrtoolError, MissingPackageError


@dataclass(frozen=True)
class Extra:
    """A package that may be missing.

    Attributes:
        package: its name, for people and for pip.
        extra: the extra of irtool's that brings it.
        purpose: the work that needs it.
    """

    package: str
    extra: str
    purpose: str

    @property
    def command(self) -> str:
        """The command that installs it."""
        return f"pip install 'irtool[{self.extra}]'"


EXTRAS: Mapping[str, Extra] = {
    "lightning_fabric": Extra("lightning-fabric", "train", "training"),
    "PIL": Extra("Pillow", "train", "reading and writing pictures"),
    "sklearn": Extra("scikit-learn", "train", "the digits data set"),
    "torchvision": Extra("torchvision", "train", "its models and data sets"),
    "tensorboard": Extra("tensorboard", "tensorboard", "writing TensorBoard events"),
    "matplotlib": Extra("matplotlib", "report", "drawing curves"),
    "MNN": Extra("MNN", "mnn", "writing and running MNN files"),
    "openvino": Extra("openvino", "openvino", "running files in OpenVINO"),
    "ncnn": Extra("ncnn", "ncnn", "writing and running ncnn files"),
    "pnnx": Extra("pnnx", "ncnn", "writing ncnn files"),
}
"""By the name that Python imports."""


def needed(module: str, kind: type[IrtoolError] = MissingPackageError) -> Any:
    """Import a module of a package that may be missing.

    Raises:
        IrtoolError: of `kind`: the package is not installed, or cannot be imported; the text has the command that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise kind(_absence(module, error), remedy=f"{EXTRAS[module.partition('.')[0]].command}.") from error


def absent(*modules: str) -> list[str]:
    """Say of each of these packages that is not installed what is left out for that, and the command that brings it."""
    gone = [EXTRAS[name] for name in modules if importlib.util.find_spec(name) is None]
    return [f"left out: {extra.purpose}, which needs {extra.package}: {extra.command}" for extra in gone]


def _absence(module: str, error: ImportError) -> str:
    name = module.partition(".")[0]
    extra = EXTRAS[name]
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == name:
        return f"{extra.purpose} needs {extra.package}, which is not installed"
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return f"{extra.purpose} needs {extra.package}, which cannot be imported ({reason})"
