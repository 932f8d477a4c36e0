"""Checkpoints: plain tensors and values, loadable with `weights_only=True`, never half-written."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from irtool.errors import TrainError
from irtool.files import replacing

FORMAT = 1
_PARTS = ("format", "model", "optimizer", "ema", "history")


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` beside `path`, then rename it over.

    Raises:
        FileError: the folder cannot be written, or the disk is full.
    """
    with replacing(path) as temporary:
        torch.save({"format": FORMAT, **state}, temporary)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, on the CPU. No code in the file is run.

    Raises:
        TrainError: not a checkpoint of ours.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise TrainError(
            f"cannot be resumed from ({reason[:120]})", where=str(path), remedy="Remove the file to start anew, or choose another folder."
        ) from error
    if not isinstance(state, dict) or any(part not in state for part in _PARTS) or state["format"] != FORMAT:
        raise TrainError(
            "not a training checkpoint of this version", where=str(path), remedy="Remove the file to start anew, or choose another folder."
        )
    return state


def check_facts(path: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Make sure that a run is continued under the options it was begun with.

    Raises:
        TrainError: they differ; each difference is named.
    """
    odd = [name for name in sorted({*saved, *now}) if saved.get(name) != now.get(name)]
    if odd:
        told = ", ".join(f"{name} was {saved.get(name)!r}, now {now.get(name)!r}" for name in odd[:4])
        raise TrainError(
            f"begun with other options: {told}", where=str(path), remedy="Resume with the old options, or choose another folder."
        )


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """The state dict that a checkpoint's score belongs to: the averaged weights where there was an EMA, else the plain ones.

    Raises:
        TrainError: not a checkpoint of ours.
    """
    state = load_checkpoint(path)
    weights: dict[str, torch.Tensor] = {**state["model"], **(state["ema"] or {})}
    return weights
