"""From what a user writes for a model to a module, and to a traced graph.

The syntax is `[module or file:]name[:key=value,...]`: `PreResNet:depth=38`, `torchvision.models:resnet18`,
`net.py:Net:classes=10,width=0.5`. Values are Python literals; any other word is a string. A name alone is a built-in model or one of
torchvision's (`resnet18`), `timm/name` one of timm's, and `trust:path` a whole model that torch.save wrote.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from irtool import load_onnx, trace
from irtool.archive import load
from irtool.commit import restore
from irtool.errors import FileError, OptionError, TraceError
from irtool.extras import needed
from irtool.hosts.onnx.files.given import Given
from irtool.hosts.torch.tracing.errors import REFUSED, UNTRACEABLE
from irtool.ir import Graph
from irtool.models import MODELS
from irtool.workflows.folders.steps import require_finished, step_folders
from irtool.workflows.loading.finite import require_finite
from irtool.workflows.loading.other_sizes import at_sizes
from irtool.workflows.loading.user_code import foreign, quiet_torch
from irtool.workflows.loading.weights import load_weights, trusted_model, whole_model

_SYNTAX = "Write PreResNet:depth=38, resnet18, timm/NAME, package.module:function, file.py:Class:classes=10, or the path of an .onnx file or of a model that irtool saved."
MODEL_FILE = "model.safetensors"
"""The name of the saved model in a compress run's folder."""
ONNX_FILE = "model.onnx"
"""The name of the ONNX file there: the model itself, if the run began with one."""
Shape = Sequence[int | None]
"""Sizes of an input; None: the model's own."""
LARGEST_INPUT = 1 << 28
"""Numbers in an input: 1 GiB of float32, and a model holds many such values at once."""
_LISTED = "torchvision.models"
_TRUST = "trust:"
"""Before the path of a whole model that torch.save wrote: the user trusts whoever made it."""
_TIMM = "timm/"
_WORDS = {"true": True, "false": False, "none": None}


@dataclass(frozen=True)
class ModelSpec:
    """A parsed MODEL argument.

    Attributes:
        place: a module's name or a file's path; empty for a built-in.
        name: the function or class.
        arguments: what it is called with.
    """

    place: str
    name: str
    arguments: dict[str, Any]

    @classmethod
    def parse(cls, text: str) -> ModelSpec:
        """Read the syntax above.

        Raises:
            OptionError: it is not of that form.
        """
        if text.startswith(_TRUST):
            return cls(_TRUST, text.removeprefix(_TRUST), {})
        parts = text.split(":", 2)
        arguments = parts.pop() if len(parts) > 1 and "=" in parts[-1] else ""
        if len(parts) > 2 or not all(parts):
            raise OptionError(f"cannot read the model {text!r}", where="MODEL", remedy=_SYNTAX)
        found = _arguments(arguments, text)
        if len(parts) == 1 and parts[0].startswith(_TIMM):
            return cls("timm", "create_model", {"model_name": parts[0].removeprefix(_TIMM), **found})
        return cls(_place_of(parts[0]) if len(parts) == 1 else parts[0], parts[-1], found)

    @property
    def file(self) -> Path:
        """The file that it comes from, if its place is one."""
        return Path(self.name if self.place == _TRUST else self.place)

    def build(self) -> nn.Module:
        """Make the module.

        Raises:
            OptionError: there is no such thing, or it cannot be called like that.
        """
        if self.place == _TRUST:
            with foreign(self.name), here_importable():
                return trusted_model(Path(self.name))
        maker = imported(self.place, self.name) if self.place else _builtin(self.name)
        if isinstance(maker, nn.Module):
            return maker
        try:
            with foreign(self.place or self.name):
                made = maker(**self.arguments)
        except OptionError:
            raise
        except Exception as error:  # the user's own code raises whatever it likes
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise OptionError(
                f"cannot be built: {reason}", where=self.name, remedy="Check the arguments after the second colon."
            ) from error
        if not isinstance(made, nn.Module):
            raise OptionError(
                f"gave a {type(made).__name__}, not an nn.Module", where=self.name, remedy="Name a function that returns the model."
            )
        return made


def _place_of(name: str) -> str:
    """The place of a model that is named alone: torchvision's, unless it is built in.

    Raises:
        OptionError: it is a .py file: what that holds is listed.
    """
    if name.endswith(".py"):
        held = _held(_from_file(Path(name)), name)
        what = f"which of its models? It holds {', '.join(held)}" if held else "holds no class or function of its own"
        raise OptionError(what, where=name, remedy=f"Write {name}:{held[0]}." if held else _SYNTAX)
    if any(known.lower() == name.lower() for known in MODELS) or importlib.util.find_spec("torchvision") is None:
        return ""
    return _LISTED if name in needed(_LISTED).list_models() else ""


def _held(module: Any, place: str) -> list[str]:
    """The modules that a user's file defines, then the functions."""
    own = [(name, value) for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    nets = [name for name, value in own if isinstance(value, type) and issubclass(value, nn.Module)]
    return nets + [name for name, value in own if inspect.isfunction(value) and not name.startswith("_")]


_REMEDIES = {
    UNTRACEABLE: "Move the data-dependent part out of forward; irtool.trace in Python can also leave modules whole.",
    REFUSED: "Give --input of sizes that the model takes, batch first, once for each input.",
}
"""What trace advises, in terms of a command."""


def graph_of(model: str, weights: Path | None, shapes: Sequence[Shape], *, sound: bool = True, values: Given | None = None) -> Graph:
    """Build or load a model and trace it, or read an ONNX file.

    Args:
        model: see the syntax above; or the path of a saved model, which needs no shapes, or of an .onnx file.
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
    if spec.place != _LISTED:
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
    if model.startswith(_TRUST):
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
        raise FileError("no such file or folder", where=model, remedy=_SYNTAX)
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
            remedy = f"If you trust whoever made it, write {_TRUST}{path}; else save the weights alone, and name the model."
            raise FileError("a whole model, pickled: loading it may run any code, so it is refused", where=str(path), remedy=remedy)
        raise OptionError("weights alone are no model", where=str(path), remedy=f"Pass them as --weights and name the model. {_SYNTAX}")
    return load_onnx(path, shapes, values) if path.suffix == ".onnx" else at_sizes(load(path), shapes, str(path))


def fingerprint(graph: Graph) -> str:
    """A digest of all weights by name: tells whether a model that was built again is the one of an earlier run."""
    digest = hashlib.sha256()
    for name, value in sorted(graph.params.items()):
        assert value.data is not None
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(value.data.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _arguments(text: str, whole: str) -> dict[str, Any]:
    try:
        call = ast.parse(f"_({text})", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the others: no UTF-8, nested too deep
        raise OptionError(
            f"cannot read the arguments of {whole[:200]!r}", where="MODEL", remedy="Write key=value, separated by commas."
        ) from error
    if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
        raise OptionError(f"cannot read the arguments of {whole!r}", where="MODEL", remedy="Write key=value, separated by commas.")
    twice = next((name for name, count in Counter(keyword.arg for keyword in call.keywords).items() if count > 1), None)
    if twice is not None:
        raise OptionError(f"{twice} is given more than once in {whole!r}", where="MODEL", remedy="Give each argument once.")
    try:
        return {str(keyword.arg): _value(keyword.value) for keyword in call.keywords}
    except RecursionError as error:
        raise OptionError("an argument is nested too deep", where="MODEL", remedy="Write key=value, separated by commas.") from error


def _value(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):  # a list as a key is no literal, either
        word = ast.unparse(node)
        return _WORDS.get(word.lower(), word)


def _builtin(name: str) -> Any:
    found = next((maker for known, maker in MODELS.items() if known.lower() == name.lower()), None)
    if found is None:
        raise OptionError(f"no built-in model is called {name!r}", where="MODEL", remedy=f"Built in are {', '.join(MODELS)}. {_SYNTAX}")
    return found


def imported(place: str, name: str) -> Any:
    """A function or class of a module, or of a file that ends in .py.

    Raises:
        OptionError: it cannot be imported, or has none of that name.
    """
    module = _from_file(Path(place)) if place.endswith(".py") else _from_package(place)
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise OptionError(f"has no {name!r}", where=place, remedy="Name a function or class that is in it.")
        found = getattr(found, part)
    if not callable(found):
        raise OptionError(f"{name} is a {type(found).__name__}, which cannot be called", where=place, remedy="Name a function or class.")
    return found


@contextlib.contextmanager
def here_importable() -> Iterator[None]:
    """The user's own package lies in the working folder. It comes last: what irtool imports later is what is installed."""
    if "" not in sys.path:
        sys.path.append("")
    yield


def _from_package(place: str) -> Any:
    with here_importable():
        return _guarded(place, lambda: importlib.import_module(place))


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise FileError("no such file", where=str(path), remedy=_SYNTAX)
    spec = importlib.util.spec_from_file_location(f"irtool_user_{path.stem}", path)
    assert spec is not None
    loader = spec.loader
    assert loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickling look there
    sys.path.insert(0, str(path.parent.resolve()))
    _guarded(str(path), lambda: loader.exec_module(module))
    return module


def _guarded(place: str, work: Any) -> Any:
    try:
        with foreign(place):
            return work()
    except OptionError:
        raise
    except Exception as error:  # the user's own code raises whatever it likes
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise OptionError(
            f"cannot be imported: {reason}", where=place, remedy="Run irtool from the folder that python would import it from."
        ) from error
