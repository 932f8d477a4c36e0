"""Reference CNNs: plain `nn.Module`s that import torch alone, nothing else of irtool.

>>> available()
['PreResNet', 'VGG']
>>> build("VGG", depth=11, width=0.25).classifier.in_features
128
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from irtool.models.preresnet import ChannelSelection, PreResNet
from irtool.models.vgg import VGG

__all__ = ["MODELS", "VGG", "ChannelSelection", "PreResNet", "available", "build"]

MODELS: dict[str, Callable[..., nn.Module]] = {"PreResNet": PreResNet, "VGG": VGG}
"""The constructors by name. A new model is one file and one row here."""


def available() -> list[str]:
    """The names that `build` takes, sorted."""
    return sorted(MODELS)


def build(name: str, **arguments: Any) -> nn.Module:
    """Build a model with fresh weights.

    Args:
        name: one of `available()`, in any case.
        arguments: passed on to the constructor.

    Raises:
        ValueError: the name is not known, or an argument has a value that the model cannot have.
        TypeError: an argument that the constructor does not take.
    """
    for known, constructor in MODELS.items():
        if known.casefold() == name.casefold():
            return constructor(**arguments)
    raise ValueError(f"no model is named {name!r}. Choose one of: {', '.join(available())}.")
