"""From what a user writes for a model to a traced graph or an ONNX file: built from a `ModelSpec`, or loaded."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from irtool import load_onnx, trace
from irtool.archive import load
from irtool.commit import restore
from irtool.errors import FileError, OptionError, TraceError
from irtool.hosts.onnx.files.given import Given
from irtool.hosts.torch.tracing.errors import REFUSED, UNTRACEABLE
from irtool.ir import Graph
from irtool.workflows.folders.steps import require_finished, step_folders
from irtool.workflows.loading.finite import require_finite
from irtool.workflows.loading.other_sizes import at_sizes
from irtool.workflows.loading.spec import LISTED, SYNTAX, TRUST, ModelSpec
from irtool.workflows.loading.user_code import foreign, quiet_torch
from irtool.workflows.loading.weights import load_weights, whole_model

MODEL_FILE = "model.safetensors"
"""The name of the saved model in a compress run's folder."""
ONNX_FILE = "model.onnx"
"""The name of the ONNX file there: the model itself, if the run began with one."""
Shape = Sequence[int | None]
"""Sizes of an input; None: the model's own."""
LARGEST_INPUT = 1 << 28
"""Numbers in an input: 1 GiB of float32, and a model holds many such values at once."""
_REMEDIES = {
    UNTRACEABLE: "Move the data-dependent part out of forward; irtool.trace in Python can also leave modules whole.",
    REFUSED: "Give --input of sizes that the model takes, batch first, once for each input.",
}
"""Advice of trace, in terms of a command."""


def graph_of(model: str, weights: Path | None, shapes: Sequence[Shape], *, sound: bool = True, values: Given | None = None) -> Graph:
    """Build or load a model and trace it, or read an ONNX file.

    Args:
        model: see `irtool.workflows.loading.spec`; or the path of a saved model, which needs no shapes, or of an .onnx file.
        weights: a state dict to load, or None for the weights that it is built with.
        shapes: of the inputs; for an ONNX file, of those with free axes that 1 for the batch and 64 do not suit; for a saved model,
            other ones than it was saved with.
        values: numbers for inputs of an ONNX file, see `load_onnx`.
        sound: refuse weights that nothing can be computed with. Without it they can be looked at.

    Raises:
        IrtoolError: one of the many things that can be wrong; each says which.
    """
    saved = saved_model(model)
    if values and (saved is None or saved.suffix != ".onnx"):
        raise OptionError("a value for an input of a model that is no .onnx file", where="--set", remedy="Leave --set out.")
    graph = _load(saved, weights, shapes, values) if saved is not None else _built(model, weights, shapes)
    if sound:
        require_finite(graph, str(weights or saved or model))
    return graph


def _built(model: str, weights: Path | None, shapes: Sequence[Shape]) -> Graph:
    module = ModelSpec.parse(model).build()
    if weights is not None:
        load_weights(module, weights)
    if not shapes:
        raise OptionError(
            "the size of the input is not known", where=model, remedy="Give --input 1x3x32x32, or --data where the command has it."
        )
    examples = tuple(torch.zeros([1 if size is None else size for size in shape]) for shape in shapes)
    _require_arguments(module, examples, model)
    try:
        with foreign(model), quiet_torch():
            return trace(module.eval(), examples)
    except TraceError as error:
        raise TraceError(error.what, where=error.where, remedy=_REMEDIES.get(str(error.remedy), error.remedy)) from error


def _require_arguments(module: nn.Module, examples: Sequence[torch.Tensor], model: str) -> None:
    """As many inputs as forward takes: the tracers leave out what is too much."""
    with contextlib.suppress(ValueError):  # compiled code tells no signature
        try:
            inspect.signature(module.forward).bind(*examples)
        except TypeError as error:
            raise OptionError(
                f"its forward does not take {len(examples)} inputs ({error})", where=model, remedy="Give --input once for each input."
            ) from error


def names_code(model: str) -> bool:
    """Whether to build a model is to run code: of a .py file, or any function of a package.

    Saved models, .onnx files, irtool's own models and those that torchvision registers are none.

    Raises:
        OptionError: it is no name of a model.
        FileError: it looks like a file and is not there.
    """
    if saved_model(model) is not None:
        return False
    spec = ModelSpec.parse(model)
    if spec.place != LISTED:
        return bool(spec.place)
    try:
        from torchvision.models import list_models
    except ImportError:
        return True
    return spec.name not in list_models()


def saved_model(model: str) -> Path | None:
    """The file, if `model` is one (or a compress run's folder) and not something to build.

    Raises:
        FileError: it looks like a file and is not there.
    """
    if model.startswith(TRUST):
        return None
    path = Path(model)
    there = _is_there(path)
    if there and path.suffix != ".py":
        folder = path if path.is_dir() else path.parent
        restore(folder)
        require_finished(folder)
    if there and path.is_dir():
        path = next((path / name for name in (MODEL_FILE, ONNX_FILE) if (path / name).is_file()), path / MODEL_FILE)
        if not path.is_file():
            steps = step_folders(path.parent)
            remedy = (
                f"A recipe made it: give a step's folder, e.g. {steps[-1]}."
                if steps
                else "Give the --out folder of an irtool compress run."
            )
            raise FileError(f"holds no {MODEL_FILE}", where=model, remedy=remedy)
    if there and path.is_file() and path.suffix != ".py":
        return path
    if path.suffix in (".pth", ".pt", ".onnx", ".safetensors") or (":" not in model and path.name != model):
        raise FileError("no such file or folder", where=model, remedy=SYNTAX)
    return None


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long for a file
        return False


def onnx_file(model: str) -> Path | None:
    """The ONNX file that the text names, directly or as a folder whose model it is; None if it names no such thing."""
    saved = saved_model(model)
    return saved if saved is not None and saved.suffix == ".onnx" else None


def _load(path: Path, weights: Path | None, shapes: Sequence[Shape], values: Given | None) -> Graph:
    if weights is not None:
        raise OptionError("a saved model has its weights in it", where="--weights", remedy="Leave --weights out.")
    if path.suffix in (".pth", ".pt"):
        if whole_model(path):
            remedy = f"If you trust whoever made it, write {TRUST}{path}; else save the weights alone, and name the model."
            raise FileError("a whole model, pickled: loading it may run any code, so it is refused", where=str(path), remedy=remedy)
        raise OptionError("weights alone are no model", where=str(path), remedy=f"Pass them as --weights and name the model. {SYNTAX}")
    return load_onnx(path, shapes, values) if path.suffix == ".onnx" else at_sizes(load(path), shapes, str(path))


def fingerprint(graph: Graph) -> str:
    """A digest of all weights by name: tells whether a model that was built again is the one of an earlier run."""
    digest = hashlib.sha256()
    for name, value in sorted(graph.params.items()):
        assert value.data is not None
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(value.data.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
