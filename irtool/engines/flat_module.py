"""A module as exporters see it: with example inputs, tensors in and tensors out.

Exporters and engines know lists of tensors; modules take and return tuples, dicts and nests of them. `FlatModule` is the
bridge: it has one positional argument per tensor leaf and returns a tuple of tensors, and it names both ends.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.utils import _pytree as pytree

from irtool.errors import BackendError
from irtool.nests import tensors_in

# The name under which FlatModule holds the user's module. Exporters write it into every name; `onnx_tidy` takes it out.
INNER = "irtool_inner"


@runtime_checkable
class Source(Protocol):
    """Anything that carries a module and inputs it can run on: `irtool.ir.Graph` does."""

    @property
    def module(self) -> nn.Module: ...
    @property
    def example_inputs(self) -> tuple[Any, ...]: ...


def resolve(source: Source | nn.Module, example_inputs: Any = None) -> tuple[nn.Module, tuple[Any, ...]]:
    """The module and its positional example inputs.

    Args:
        source: a graph, or a bare module.
        example_inputs: a tensor or a tuple of (possibly nested) tensors; needed for a bare module, and replaces a graph's own.

    Raises:
        BackendError: a bare module came without example inputs, or the inputs hold no tensor.
    """
    module = source if isinstance(source, nn.Module) else getattr(source, "module", None)
    if not isinstance(module, nn.Module):
        raise BackendError(
            f"a {type(source).__name__} holds no torch module",
            remedy="Give a traced graph or a module; write an ONNX graph with save_onnx.",
        )
    if example_inputs is None:
        example_inputs = None if isinstance(source, nn.Module) else source.example_inputs
    if isinstance(example_inputs, torch.Tensor):
        example_inputs = (example_inputs,)
    if not example_inputs or not tensors_in(tuple(example_inputs)):
        raise BackendError(
            "no example input tensor to run the module on",
            where=type(module).__name__,
            remedy="Pass example_inputs=(tensor, ...) or a Graph that carries them.",
        )
    return module, tuple(example_inputs)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode without gradients inside the block; every submodule's own training flag is back after it.

    The flags are set one by one: `eval()` raises on modules that `torch.export` made.
    """
    training = [m for m in module.modules() if m.training]
    for m in training:
        m.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for m in training:
            m.training = True


class FlatModule(nn.Module):
    """The module with one argument per input tensor and a tuple of tensors as its result.

    Leaves of the example inputs that are no tensors (None, numbers, flags) are frozen in; leaves of the result that are
    no tensors are dropped.
    """

    def __init__(self, module: nn.Module, example_inputs: tuple[Any, ...]) -> None:
        super().__init__()
        leaves, self._spec = pytree.tree_flatten(example_inputs)
        self._frozen = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        self._slots = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        setattr(self, INNER, module)
        self.examples: list[torch.Tensor] = [leaves[i].detach() for i in self._slots]
        self.input_names = _input_names(module, example_inputs)
        self.training = module.training
        self.writes = False
        """Whether the module writes into its inputs: it is given copies then, since an engine's inputs are not written into."""

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        leaves = tensors_of(self.nested(*tensors))
        # An exporter gives an input that is returned as it came the output's name, and loses its own: make it another value.
        return tuple(leaf.clone() if any(leaf is tensor for tensor in tensors) else leaf for leaf in leaves)

    def observed(self, *tensors: torch.Tensor) -> Any:
        """`nested` on copies; from here on the module is given copies if it wrote into these."""
        given = [tensor.clone() for tensor in tensors]
        result = self.nested(*given)
        self.writes |= any(not torch.equal(one, other) for one, other in zip(given, tensors, strict=True))
        return result

    def nested(self, *tensors: torch.Tensor) -> Any:
        """The module's own result, as nested as it is."""
        leaves = list(self._frozen)
        for slot, tensor in zip(self._slots, tensors, strict=True):
            leaves[slot] = tensor.clone() if self.writes else tensor
        return getattr(self, INNER)(*pytree.tree_unflatten(leaves, self._spec))


def tensors_of(result: Any) -> list[torch.Tensor]:
    """The tensors in a nested result, in the order of `result_names`."""
    return tensors_in(result)


def result_names(result: Any) -> list[str]:
    """A name per tensor of a result: `output`, or `output_0` ... for a sequence, or the keys of a dict joined by `_`."""
    paths = [path for path, leaf in pytree.tree_flatten_with_path(result)[0] if isinstance(leaf, torch.Tensor)]
    return _unique([_path_name("output", path) for path in paths])


def _input_names(module: nn.Module, example_inputs: tuple[Any, ...]) -> list[str]:
    """`input` if there is one tensor, else the names in the signature of `forward`, with the path inside each argument."""
    paths = [path for path, leaf in pytree.tree_flatten_with_path(example_inputs)[0] if isinstance(leaf, torch.Tensor)]
    if len(paths) == 1:
        return ["input"]
    parameters = [
        p.name for p in inspect.signature(module.forward).parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    named = parameters + [f"input_{i}" for i in range(len(parameters), len(example_inputs))]
    return _unique([_join([named[int(_keys(path)[0])], *_keys(path)[1:]]) for path in paths])


def _path_name(prefix: str, path: Sequence[Any]) -> str:
    keys = _keys(path)
    return _join(keys) if keys and not keys[0].isdigit() else _join([prefix, *keys])


def _keys(path: Sequence[Any]) -> list[str]:
    return [str(next(v for v in (getattr(step, a, None) for a in ("key", "idx", "name")) if v is not None)) for step in path]


def _join(parts: Sequence[str]) -> str:
    return re.sub(r"\W", "_", "_".join(parts))


def _unique(names: Sequence[str]) -> list[str]:
    """The names with `_1`, `_2` ... on later repeats."""
    taken: list[str] = []
    for name in names:
        count, candidate = 0, name
        while candidate in taken:
            count += 1
            candidate = f"{name}_{count}"
        taken.append(candidate)
    return taken
