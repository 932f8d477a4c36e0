"""Checkpoints: plain tensors and values, loadable with `weights_only=True`, never half-written."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from irtool.atomic_files import replacing
from irtool.errors import FileError, TrainError
from irtool.train.ema import Average, alike
from irtool.train.history import History
from irtool.train.stored import load_stored

FORMAT = 1
_PARTS = ("format", "model", "optimizer", "ema", "history")
ANEW = "Remove the file to start anew, or choose another folder."


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` beside `path`, then rename it over.

    Raises:
        FileError: the folder cannot be written, or the disk is full.
    """
    content = io.BytesIO()  # not to the file: torch does not tell that a disk is full
    torch.save({"format": FORMAT, **state}, content)
    with replacing(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, on the CPU. No code in the file is run.

    Raises:
        TrainError: not a checkpoint of ours.
    """
    try:
        state = load_stored(path)
    except FileError as error:
        raise TrainError(error.what, where=error.where, remedy=ANEW) from error
    except Exception as error:  # what a foreign file does to an unpickler has no bounds: "hello" is a KeyError
        reason = " ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
        raise TrainError(f"no whole checkpoint: cannot be resumed from ({reason[:120]})", where=str(path), remedy=ANEW) from error
    if not _is_ours(state):
        raise TrainError("not a training checkpoint of this version", where=str(path), remedy=ANEW)
    return state


def _is_ours(state: object) -> bool:
    """Whether each part is there and of the right kind. Whether it fits a model is told by `restore`."""
    if not isinstance(state, dict) or not all(part in state for part in _PARTS):
        return False
    version, weights = state["format"], (state["model"], state["optimizer"], {} if state["ema"] is None else state["ema"])
    if not isinstance(version, int) or version != FORMAT or not all(isinstance(part, dict) for part in weights):
        return False
    try:
        History.from_dict(state["history"])
    except TrainError:
        return False
    return True


def restore(path: Path, facts: Mapping[str, Any], module: nn.Module, optimizer: Any, average: Average | None) -> History:
    """Put a checkpoint into a run that was made with the same options.

    Args:
        facts: those of the run.
        optimizer: a torch optimizer, or Fabric's around one.

    Raises:
        TrainError: not a checkpoint of ours, of other options, or of another model.
    """
    state = load_checkpoint(path)
    history = History.from_dict(state["history"])
    check_facts(path, history.facts, facts)
    try:
        module.load_state_dict(state["model"])
        _load_optimizer(optimizer, state["optimizer"])
        if average:
            average.load(state["ema"])
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise TrainError(
            "its weights do not fit this model",
            where=str(path),
            remedy="Resume with the model it was begun with, or remove the file to start anew.",
        ) from error
    return history


def _load_optimizer(optimizer: Any, saved: Mapping[str, Any]) -> None:
    """Load the momenta. The options are those of the run: a step would not find out that those of the file are no numbers.

    Raises:
        ValueError, TypeError, LookupError, AttributeError: they are those of another model.
    """
    groups = zip(optimizer.state_dict()["param_groups"], saved["param_groups"], strict=True)
    optimizer.load_state_dict({"state": saved["state"], "param_groups": [{**own, "params": stored["params"]} for own, stored in groups]})
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    stored = [(parameter, optimizer.state[parameter].get("momentum_buffer")) for parameter in parameters if parameter in optimizer.state]
    if not all(momentum is None or alike(momentum, parameter) for parameter, momentum in stored):
        raise ValueError("the momenta of another model")


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
