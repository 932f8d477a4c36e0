"""PyTorch as an engine among the others, so that code which compares engines can loop over them."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import nn

from irtool.engines.flat_module import FlatModule, Source, evaluating, resolve, result_names, tensors_of
from irtool.engines.session import TensorSpec, checked
from irtool.errors import BackendError


class TorchSession:
    """A module run in eval mode without gradients; its training flags are as before after every run.

    Args:
        source: a graph, or a bare module.
        example_inputs: needed for a bare module; they give the inputs' names, dtypes and shapes. Axis 0 is free.
        compiled: run it through `torch.compile`, which compiles in the first run and for each new shape: seconds to minutes.

    Raises:
        BackendError: no example inputs, or `compiled` where there is no C++ compiler; from `run`: arrays that do not fit, or the module's own failure.
    """

    engine = "torch"

    def __init__(self, source: Source | nn.Module, example_inputs: Any = None, *, compiled: bool = False) -> None:
        module, examples = resolve(source, example_inputs)
        self._flat = FlatModule(module, examples)
        self._call: nn.Module | Callable[..., Any] = _compiled(self._flat) if compiled else self._flat
        self._devices = [example.device for example in self._flat.examples]
        self._inputs = tuple(_spec(name, example) for name, example in zip(self._flat.input_names, self._flat.examples, strict=True))
        self._outputs: tuple[TensorSpec, ...] | None = None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Known by running the example inputs once."""
        if self._outputs is None:
            with evaluating(self._flat):
                result = self._flat.observed(*self._flat.examples)
            self._outputs = tuple(_spec(name, tensor) for name, tensor in zip(result_names(result), tensors_of(result), strict=True))
        return self._outputs

    def run(self, *arrays: np.ndarray) -> list[np.ndarray]:
        """The module's output tensors, flattened, as numpy arrays of their own."""
        fit = checked(self.engine, self._inputs, arrays)
        tensors = [torch.from_numpy(array).to(device, copy=True) for array, device in zip(fit, self._devices, strict=True)]
        try:
            with evaluating(self._flat):
                return [np.array(tensor.detach().cpu().numpy()) for tensor in self._call(*tensors)]
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
            first = str(error).strip().splitlines() or [type(error).__name__]
            raise BackendError(
                f"the module failed: {first[0]}", where=self.engine, remedy="Run the module on the same input in PyTorch to see where."
            ) from error


def _compiled(module: nn.Module) -> Callable[..., Any]:
    """Wrap a module by `torch.compile`, which writes C++ and has it compiled."""
    command = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ([command] if command else _COMPILERS)):
        raise BackendError(
            "torch.compile needs a C++ compiler, and there is none", where="torch", remedy="Install g++, or name one in the variable CXX."
        )
    from torch._dynamo import config  # takes a second to import

    found: Callable[..., Any] = torch.compile(_own_forward(module))

    def call(*tensors: torch.Tensor) -> Any:
        # Past its limit of recompilations torch would run the module uncompiled, with a warning at most.
        with config.patch(fail_on_recompile_limit_hit=True):
            return found(*tensors)

    return call


def _own_forward(module: nn.Module) -> Callable[..., Any]:
    """The module's forward with a code object of its own: torch counts compilations by code, and all sessions would share a few."""
    shared = type(module).forward
    code = shared.__code__.replace(co_name=f"forward_{next(_NUMBERS)}")
    return MethodType(FunctionType(code, shared.__globals__, code.co_name, shared.__defaults__, shared.__closure__), module)


_NUMBERS = itertools.count()
_COMPILERS = ("g++", "clang++", "c++")


def _spec(name: str, tensor: torch.Tensor) -> TensorSpec:
    shape = tuple(tensor.shape)
    return TensorSpec(name, (None, *shape[1:]) if shape else (), str(tensor.dtype).removeprefix("torch."))
