"""Two programs of any kind side by side on the same inputs: graphs, modules, sessions of engines, functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from irtool.analysis.compare import Comparison, arguments_of, compare_graphs, compare_results, tolerance_for
from irtool.errors import OptionError
from irtool.hosts.torch.running.interpreter import cast_module
from irtool.ir.graph import Graph
from irtool.modes import evaluating
from irtool.nests import cast, map_tensors, tensors_in
from irtool.tensor_defaults import plain_tensors, seeded


@plain_tensors()
def compare(a: Any, b: Any, inputs: Any, *, dtype: torch.dtype | None = None) -> Comparison:
    """Run two programs on the same inputs.

    Args:
        a: the reference: a graph, an `nn.Module`, a session of `irtool.engines`, or any function of tensors. Modules and
            graphs run in eval mode without gradients; ONNX graphs run in onnxruntime.
        b: the other program, of any of these kinds.
        inputs: a tensor or array, or a tuple of the positional arguments.
        dtype: compute in this type (`torch.float64`), on copies. Torch graphs and modules only: sessions and functions get
            the inputs as they are.

    Returns:
        Errors per output. For two graphs of one host the nodes that share a name are compared as well. Torch graphs run in
        lockstep, so that of the values inside only those still needed are held.

    Raises:
        OptionError: something that cannot be run; or a type that was asked of an ONNX graph, which states its own.
        CheckError: the programs return different numbers of tensors.
        GraphError: a graph cannot run on these inputs.
    """
    if isinstance(a, Graph) and isinstance(b, Graph) and type(a) is type(b):
        return compare_graphs(a, b, inputs, dtype=dtype)
    first, second = (seeded(runner(program, dtype), *arguments_of(inputs)) for program in (a, b))
    return compare_results(first, second, tolerance_for(dtype))


def runner(program: Any, dtype: torch.dtype | None = None) -> Callable[..., Any]:
    """A function of tensors that runs a graph, module, session or function once, without touching its inputs.

    Raises:
        OptionError: something that cannot be run.
    """
    for fits, make in _RUNNERS:
        if fits(program):
            return make(program, dtype)
    raise OptionError(f"{type(program).__name__} cannot be run", remedy="Pass a graph, an nn.Module, a session or a function of tensors.")


def _run_graph(graph: Graph, dtype: torch.dtype | None) -> Callable[..., Any]:
    return lambda *inputs: graph.run_as(inputs, dtype)


def _run_module(module: nn.Module, dtype: torch.dtype | None) -> Callable[..., Any]:
    def run(*inputs: Any) -> Any:
        given = map_tensors(inputs, torch.clone)
        with evaluating(module if dtype is None else cast_module(module, dtype)) as ready, torch.no_grad():
            return ready(*(given if dtype is None else cast(given, dtype)))

    return run


def _run_session(session: Any, dtype: torch.dtype | None) -> Callable[..., Any]:
    return lambda *inputs: session.run(*(leaf.detach().cpu().numpy() for leaf in tensors_in(inputs)))


def _run_function(function: Callable[..., Any], dtype: torch.dtype | None) -> Callable[..., Any]:
    def run(*inputs: Any) -> Any:
        with torch.no_grad():
            return function(*map_tensors(inputs, torch.clone))

    return run


_RUNNERS: tuple[tuple[Callable[[Any], bool], Callable[[Any, torch.dtype | None], Callable[..., Any]]], ...] = (
    (lambda program: isinstance(program, Graph), _run_graph),
    (lambda program: isinstance(program, nn.Module), _run_module),
    # By what it has, not by its class: a session of the user's own will do.
    (lambda program: callable(getattr(program, "run", None)), _run_session),
    (callable, _run_function),
)
