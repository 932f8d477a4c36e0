"""From what a user writes for a model to a module.

The syntax is `[module or file:]name[:key=value,...]`: `PreResNet:depth=38`, `torchvision.models:resnet18`,
`net.py:Net:classes=10,width=0.5`. Values are Python literals; any other word is a string. A name alone is a built-in model or one of
torchvision's (`resnet18`), `timm/name` one of timm's, and `trust:path` a whole model that torch.save wrote.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from irtool.errors import FileError, OptionError
from irtool.extras import needed
from irtool.models import MODELS
from irtool.workflows.loading.user_code import foreign
from irtool.workflows.loading.weights import trusted_model

SYNTAX = "Write PreResNet:depth=38, resnet18, timm/NAME, package.module:function, file.py:Class:classes=10, or the path of an .onnx file or of a model that irtool saved."
LISTED = "torchvision.models"
TRUST = "trust:"
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
        if text.startswith(TRUST):
            return cls(TRUST, text.removeprefix(TRUST), {})
        parts = text.split(":", 2)
        arguments = parts.pop() if len(parts) > 1 and "=" in parts[-1] else ""
        if len(parts) > 2 or not all(parts):
            raise OptionError(f"cannot read the model {text!r}", where="MODEL", remedy=SYNTAX)
        found = _arguments(arguments, text)
        if len(parts) == 1 and parts[0].startswith(_TIMM):
            return cls("timm", "create_model", {"model_name": parts[0].removeprefix(_TIMM), **found})
        return cls(_place_of(parts[0]) if len(parts) == 1 else parts[0], parts[-1], found)

    @property
    def file(self) -> Path:
        """The file that it comes from, if its place is one."""
        return Path(self.name if self.place == TRUST else self.place)

    def build(self) -> nn.Module:
        """Make the module.

        Raises:
            OptionError: there is no such thing, or it cannot be called like that.
        """
        if self.place == TRUST:
            _look_here()
            with foreign(self.name):
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
        held = _held(_from_file(Path(name)))
        what = f"which of its models? It holds {', '.join(held)}" if held else "holds no class or function of its own"
        raise OptionError(what, where=name, remedy=f"Write {name}:{held[0]}." if held else SYNTAX)
    if any(known.lower() == name.lower() for known in MODELS) or importlib.util.find_spec("torchvision") is None:
        return ""
    return LISTED if name in needed(LISTED).list_models() else ""


def _held(module: Any) -> list[str]:
    """The modules that a user's file defines, then the functions."""
    own = [(name, value) for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    nets = [name for name, value in own if isinstance(value, type) and issubclass(value, nn.Module)]
    return nets + [name for name, value in own if inspect.isfunction(value) and not name.startswith("_")]


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
        raise OptionError(f"no built-in model is called {name!r}", where="MODEL", remedy=f"Built in are {', '.join(MODELS)}. {SYNTAX}")
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


def _look_here() -> None:
    """Let Python import from the working folder, where the user's own package lies, after all that is installed."""
    if "" not in sys.path:
        sys.path.append("")


def _from_package(place: str) -> Any:
    _look_here()
    return _guarded(place, lambda: importlib.import_module(place))


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise FileError("no such file", where=str(path), remedy=SYNTAX)
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
