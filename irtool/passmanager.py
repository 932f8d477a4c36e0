"""Passes and pipelines: a pass takes a graph and returns another; it never changes the one it was given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic

import torch

from irtool.analysis.compare import TOLERANCES, compare
from irtool.analysis.randomness import without_dropout
from irtool.errors import CheckError, OptionError
from irtool.hosts.onnx.graph import OnnxGraph
from irtool.hosts.torch.graph import FxGraph
from irtool.hosts.torch.modules import map_tensors
from irtool.ir.graph import G, Graph


@dataclass(frozen=True)
class PassResult(Generic[G]):
    """What a pass returns.

    Attributes:
        graph: the new graph; the same object as before if nothing changed.
        changed: whether anything did.
        notes: what was done, left alone or only approximate, a line each.
    """

    graph: G
    changed: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pass:
    """Base of all passes. A subclass is a frozen dataclass whose fields are its options.

    Class attributes:
        name: what the command line and the registry call it.
        exact: whether outputs stay equal up to rounding; a pipeline checks that when asked.
    """

    name: ClassVar[str] = ""
    exact: ClassVar[bool] = True

    def __call__(self, graph: G) -> PassResult[G]:
        """Apply the pass.

        Raises:
            IrtoolError: the pass refuses, with the reason and what to do.
        """
        raise NotImplementedError


def onnx_only(graph: Graph, name: str) -> OnnxGraph:
    """The graph, for a pass that rewrites ONNX graphs alone.

    Raises:
        OptionError: it is a traced model.
    """
    if not isinstance(graph, OnnxGraph):
        raise OptionError("works on ONNX graphs", where=name, remedy="Export the model and read it with irtool.load_onnx first.")
    return graph


REGISTRY: dict[str, type[Pass]] = {}


def register(kind: type[Pass]) -> type[Pass]:
    """Class decorator: make a pass known by its name."""
    REGISTRY[kind.name] = kind
    return kind


def make(name: str, **options: Any) -> Pass:
    """A pass by name.

    Raises:
        OptionError: no such pass, or it has no such option.
    """
    kind = REGISTRY.get(name)
    if kind is None:
        raise OptionError(f"no pass is called {name!r}", remedy=f"Passes are {', '.join(sorted(REGISTRY))}.")
    try:
        return kind(**options)
    except TypeError as error:
        raise OptionError(str(error), where=name, remedy="See the pass's fields.") from error


@dataclass(frozen=True)
class Pipeline:
    """Passes in order.

    Args:
        passes: what to apply.
        check: compare each exact pass's result with its argument: torch graphs in float64 and as they are, ONNX graphs in onnxruntime.
        check_inputs: what to compare them on; given alone it asks for the check. Default: noise of the example's shapes.
        tolerance: the relative error that an exact pass may show in float64; in float32 it is 1e-4.
        on_pass: called with each pass and its result, for progress.
    """

    passes: Sequence[Pass]
    check_inputs: tuple[Any, ...] | None = None
    tolerance: float = 1e-9
    on_pass: Callable[[Pass, PassResult[Any]], None] = field(default=lambda _pass, _result: None)
    check: bool = False

    def __call__(self, graph: G) -> PassResult[G]:
        """Apply all passes.

        Raises:
            CheckError: an exact pass changed the outputs; the text names it and the first node that differs.
        """
        changed, notes = False, []
        inputs = _noise(graph) if self.check and self.check_inputs is None else self.check_inputs
        for step in self.passes:
            result = step(graph)
            if inputs is not None and step.exact and result.changed:
                self._check(step, graph, result.graph, inputs)
            self.on_pass(step, result)
            graph, changed = result.graph, changed or result.changed
            notes += [f"{step.name}: {note}" for note in result.notes]
        return PassResult(graph, changed, tuple(notes))

    def _check(self, step: Pass, before: G, after: G, inputs: tuple[Any, ...]) -> None:
        before, after = without_dropout(before), without_dropout(after)
        pairs: list[tuple[Graph, Graph, torch.dtype | None, float]] = [(before, after, None, TOLERANCES[None])]
        if isinstance(before, FxGraph):
            # In float64 from the start: weights that a pass computes in float32 are rounded there, and that is no fault of the pass.
            wide = before.to(torch.float64)
            pairs.insert(0, (wide, step(wide).graph, torch.float64, self.tolerance))
        for reference, other, dtype, tolerance in pairs:
            found = compare(reference, other, inputs, dtype=dtype)
            if not found.ok(tolerance):
                raise CheckError(
                    f"the pass {step.name} changed the outputs: {found.text(tolerance)}",
                    remedy="Please report this model; leave the pass out meanwhile.",
                )


def _noise(graph: Graph) -> tuple[Any, ...]:
    """Normal noise of the example's shapes, always the same; inputs that are no floats stay as they are."""
    generator = torch.Generator().manual_seed(0)
    made: tuple[Any, ...] = map_tensors(
        graph.example_inputs, lambda t: torch.randn(t.shape, generator=generator, dtype=t.dtype) if t.is_floating_point() else t
    )
    return made
