"""Reading a state dict without running anything that the file may hold, and fitting it to a model."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from irtool.errors import FileError
from irtool.models.preresnet import ChannelSelection
from irtool.train.stored import load_stored

_NESTED = ("state_dict", "model_state_dict", "model", "net", "module")
_MAGIC = (b"PK", b"\x80")
"""How a zip and a pickle begin: what torch.save writes."""
_SAVE_AGAIN = "Save the weights alone: torch.save(model.state_dict(), path), or safetensors."


def load_weights(model: nn.Module, path: Path) -> None:
    """Put the weights of a file into a model: all that it has, but for selections of all channels, which may be missing.

    Raises:
        FileError: the file is missing, truncated or foreign, would have to run code, or does not fit the model.
    """
    state = _within(read_weights(path), model.state_dict())
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    whole = {
        f"{path}.indexes" for path, module in model.named_modules() if isinstance(module, ChannelSelection) and module.positions is None
    }
    missing, unexpected = [name for name in own if name not in state and name not in whole], [name for name in state if name not in own]
    if missing or unexpected:
        parts = [f"{len(missing)} weights missing, the first is {missing[0]!r}"] if missing else []
        parts += [f"{len(unexpected)} unexpected, the first is {unexpected[0]!r}"] if unexpected else []
        raise FileError(
            "; ".join(parts),
            where=str(path),
            remedy=f"Name the model, and its arguments, that these weights belong to ({type(model).__name__} here).",
        )
    for name in state:
        shape = own[name]
        if state[name].layout != torch.strided or state[name].is_meta or state[name].is_quantized:
            raise FileError(f"{name} is no dense tensor of numbers", where=str(path), remedy="Save it dense, in floating point.")
        if tuple(state[name].shape) != shape:
            raise FileError(
                f"{name} has shape {_sizes(state[name].shape)}, the model's has {_sizes(shape)}",
                where=str(path),
                remedy="Check the model's arguments (depth, width, classes).",
            )
    model.load_state_dict(state, strict=False)  # what is missing selects all channels, and has no place in a traced model's checkpoint


def _within(state: dict[str, Tensor], own: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights under the attribute by which whatever trained the model held it: `model.` in a Lightning module, beside a loss's own."""
    if not own or not own.keys().isdisjoint(state):
        return state
    for prefix in dict.fromkeys(name.partition(".")[0] + "." for name in state):
        found = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        if own.keys() <= found.keys():
            return found
    return state


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name: of the file itself, or of what lies under `state_dict`, `model` and the like.

    Raises:
        FileError: as above.
    """
    if not path.is_file():
        raise FileError(
            "is a folder" if path.is_dir() else "no such file", where=str(path), remedy="Give the path of a .pth or .safetensors file."
        )
    plain = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    found = _tensors(plain)
    for key in _NESTED:
        if not found and isinstance(plain, Mapping):
            found = _tensors(plain.get(key))
    if isinstance(plain, Mapping) and isinstance(plain.get("ema"), Mapping):
        found |= _tensors(plain["ema"])  # irtool's own checkpoints: what their score belongs to
    if not found:
        raise FileError("holds no state dict", where=str(path), remedy=_SAVE_AGAIN)
    if all(name.startswith("module.") for name in found):  # saved from DataParallel
        found = {name.removeprefix("module."): tensor for name, tensor in found.items()}
    return found


def trusted_model(path: Path) -> nn.Module:
    """Load a whole model that torch.save wrote. Its pickle may run any code: for files of whoever the user trusts, who says so.

    Raises:
        FileError: it is missing, cannot be loaded, or holds no module.
    """
    if not path.is_file():
        raise FileError("no such file", where=str(path), remedy="Give the path of a file that torch.save(model, path) wrote.")
    try:
        found = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # the code that the file names raises whatever it likes
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        remedy = "Run irtool from the folder from which python imports the model's class."
        raise FileError(f"cannot be loaded ({reason})", where=str(path), remedy=remedy) from error
    held = found.get("model", found.get("net")) if isinstance(found, Mapping) else found
    if not isinstance(held, nn.Module):
        what = "weights alone" if isinstance(found, Mapping) else f"a {type(found).__name__}"
        raise FileError(f"holds {what}, no model", where=str(path), remedy="Give it as --weights, and name the model.")
    return held.float() if any(tensor.dtype == torch.float16 for tensor in held.parameters()) else held


def _tensors(plain: Any) -> dict[str, Tensor]:
    """The mapping if all it holds is tensors by name, else nothing."""
    if not isinstance(plain, Mapping) or not plain:
        return {}
    whole = all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in plain.items())
    return dict(plain) if whole else {}


def _safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError("not a safetensors file, or a truncated one", where=str(path), remedy="Copy or save it again.") from error


def _torch(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            if not file.read(2).startswith(_MAGIC):
                raise _damaged(path)  # torch would take a text for a pickle
        return load_stored(path)
    except pickle.UnpicklingError as error:
        if "global" in str(error).lower() or "WeightsUnpickler" in str(error):
            raise FileError(
                "holds pickled objects, which could run code when loaded: refused", where=str(path), remedy=_SAVE_AGAIN
            ) from error
        raise _damaged(path) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise _damaged(path) from error


def whole_model(path: Path) -> bool:
    """Whether a file names classes beside tensors, as a whole model does. Nothing of it is run."""
    try:
        load_stored(path)
    except pickle.UnpicklingError as error:
        return "global" in str(error).lower() or "WeightsUnpickler" in str(error)
    except Exception:  # what a foreign file does to an unpickler has no bounds
        return False
    return False


def _damaged(path: Path) -> FileError:
    return FileError("not a torch checkpoint, or a truncated one", where=str(path), remedy="Copy or save it again.")


def _sizes(shape: Any) -> str:
    return "x".join(map(str, shape)) or "scalar"
