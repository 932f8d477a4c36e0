"""Passes and pipelines: a pass takes a graph and returns another; it never changes the one it was given.

The base class keeps that contract. A pass says what it does in `rewrite`; `Pass.__call__` watches the caller's graph, compares the result
with it, and writes down what has to be done again to get there. Passes are data: `str(pass)` is text that `Pipeline.parse` reads.
"""

from __future__ import annotations

import importlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, ClassVar, Generic

import torch

from irtool.analysis.compare import TOLERANCES, compare_graphs
from irtool.analysis.randomness import without_dropout
from irtool.errors import CheckError, OptionError
from irtool.ir.graph import G, Graph
from irtool.nests import map_tensors
from irtool.pass_text import options_of, parse, text_of
from irtool.tensor_defaults import plain_tensors

_LOG = logging.getLogger(__name__)

ENTRY_POINTS = "irtool.passes"
"""The group of entry points by which another package ships passes: a name, and the module or class that registers it."""


@dataclass(frozen=True)
class PassResult(Generic[G]):
    """The result of a pass.

    Attributes:
        graph: the new graph; the same object as before if nothing changed.
        changed: whether anything did.
        notes: what was done, left alone or only approximate, a line each.
    """

    graph: G
    changed: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rewritten(Generic[G]):
    """The result that `Pass.rewrite` hands to the base class.

    Attributes:
        graph: a new graph, or the given one where there was nothing to do.
        notes: what was done, left alone or only approximate, a line each.
        record: what the history needs beside the options to repeat the pass, JSON data.
    """

    graph: G
    notes: Iterable[str] = ()
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pass(ABC):
    """Base of all passes. A subclass is a frozen dataclass whose fields are its options, and has a `rewrite`.

    Class attributes:
        name: what the command line, recipes, archives and the registry call it.
        exact: whether outputs stay equal up to rounding; a pipeline checks that when asked.
    """

    name: ClassVar[str] = ""
    exact: ClassVar[bool] = True

    @plain_tensors()
    def __call__(self, graph: G) -> PassResult[G]:
        """Apply the pass: the given graph stays as it is, `changed` is true if and only if the result differs from it.

        Raises:
            CheckError: the pass changed the graph that it was given.
            IrtoolError: the pass refuses, with the reason and what to do.
        """
        graph.follow()
        before = _state(graph)
        made = self.rewrite(graph)
        if _state(graph) != before:
            raise CheckError(f"the pass {self.name} changed the graph that it was given", remedy="Let rewrite() edit graph.clone().")
        notes = tuple(made.notes)
        changed = not (made.graph is graph or _equal(graph, made.graph))
        _LOG.info("pass %s: %s%s", self, "changed the graph" if changed else "nothing to do", "".join(f"; {note}" for note in notes))
        if not changed:
            return PassResult(graph, False, notes)
        made.graph.notes = tuple(dict.fromkeys((*graph.notes, *made.graph.notes)))  # what was fixed by the trace still is
        made.graph.history = (*graph.history, {"step": self.name, **self.options(), **made.record})
        return PassResult(made.graph, True, notes)

    @abstractmethod
    def rewrite(self, graph: G) -> Rewritten[G]:
        """Make the new graph: edit `graph.clone()` and `commit()` it, or build another. Return `graph` itself if nothing is to do.

        Raises:
            IrtoolError: the pass refuses.
        """

    def options(self) -> dict[str, Any]:
        """The options that are plain data (numbers, texts, lists of them), as the history keeps them."""
        return options_of(self)

    @classmethod
    def replay(cls, graph: G, step: Mapping[str, Any]) -> G:
        """Repeat a recorded step on a graph of the same program, whose weights are loaded afterwards. The caller's graph stays.

        By default the pass runs again with its recorded options. A pass that changes values alone, or that decided by values, has
        its own.
        """
        names = cls.__dataclass_fields__
        return cls(**{name: value for name, value in step.items() if name in names})(graph).graph

    def __str__(self) -> str:
        return text_of(self)


class ChangesValues:
    """Mixin of passes that change values and no shape: when a file is loaded, its weights have them already."""

    @classmethod
    def replay(cls, graph: G, step: Mapping[str, Any]) -> G:
        """Repeat the step: nothing is left to do."""
        return graph.clone()


def onnx_only(graph: Graph, name: str) -> None:
    """Refuse a traced model, for a pass that is of use to ONNX graphs alone.

    Raises:
        OptionError: the graph can be trained, as those of files cannot.
    """
    if graph.trainable:
        raise OptionError("works on ONNX graphs", where=name, remedy="Export the model and read it with irtool.load_onnx first.")


REGISTRY: dict[str, type[Pass]] = {}


def register(kind: type[Pass]) -> type[Pass]:
    """Class decorator: make a pass known by its name.

    Raises:
        OptionError: another pass has that name.
    """
    known = REGISTRY.get(kind.name)
    if known is not None and (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
        raise OptionError(f"a pass is called {kind.name!r} already", where=known.__module__, remedy="Give the new one another name.")
    REGISTRY[kind.name] = kind
    return kind


def find(name: str) -> type[Pass]:
    """The pass of a name: irtool's own, one that was registered, or one that an installed package offers as an entry point.

    Raises:
        OptionError: no such pass.
    """
    importlib.import_module("irtool.passes")  # registers irtool's own, which lie above this module
    plain = name.replace("-", "_")
    if plain not in REGISTRY:
        for point in entry_points(group=ENTRY_POINTS, name=plain):
            point.load()
    if plain not in REGISTRY:
        raise OptionError(f"no pass is called {name!r}", remedy=f"Passes are {', '.join(sorted(REGISTRY))}.")
    return REGISTRY[plain]


def make(name: str, **options: Any) -> Pass:
    """A pass by name.

    Raises:
        OptionError: no such pass, or it has no such option.
    """
    kind = find(name)
    try:
        return kind(**options)
    except TypeError as error:
        raise OptionError(str(error), where=name, remedy="See the pass's fields.") from error


@dataclass(frozen=True)
class Pipeline(Pass):
    """Passes in order, and a pass itself: pipelines nest.

    Args:
        passes: what to apply.
        check: compare each exact pass's result with its argument: torch graphs in float64 and as they are, ONNX graphs in onnxruntime.
        check_inputs: what to compare them on; given alone it asks for the check. Default: noise of the example's shapes.
        tolerance: the relative error that an exact pass may show in float64; in float32 it is 1e-4.
        on_pass: called with each pass and its result, for progress.
    """

    name: ClassVar[str] = "pipeline"
    exact: ClassVar[bool] = False
    """Each exact pass inside is checked by itself."""

    passes: Sequence[Pass]
    check_inputs: tuple[Any, ...] | None = None
    tolerance: float = 1e-9
    on_pass: Callable[[Pass, PassResult[Any]], None] = field(default=lambda _pass, _result: None)
    check: bool = False

    @classmethod
    def parse(cls, text: str, **settings: Any) -> Pipeline:
        """A pipeline from its text: `fold-batchnorm, remove-identity{dropout=true}`. `settings` are the other fields.

        Raises:
            OptionError: the text cannot be read, or names a pass or an option that does not exist.
        """
        return cls(tuple(parse(text, find)), **settings)

    @plain_tensors()
    def __call__(self, graph: G) -> PassResult[G]:
        """Apply all passes.

        Raises:
            CheckError: an exact pass changed the outputs; the text names it and the first node that differs.
        """
        changed, notes = False, []
        inputs = _noise(graph) if self.check and self.check_inputs is None else self.check_inputs
        for step in self.passes:
            inner = replace_check(step, inputs) if isinstance(step, Pipeline) else step
            result = inner(graph)
            if inputs is not None and step.exact and result.changed:
                self._check(step, graph, result.graph, inputs)
            self.on_pass(step, result)
            graph, changed = result.graph, changed or result.changed
            notes += [f"{step.name}: {note}" for note in result.notes]
        return PassResult(graph, changed, tuple(notes))

    def rewrite(self, graph: G) -> Rewritten[G]:
        """Apply all passes; each writes its own step into the history."""
        made = self(graph)
        return Rewritten(made.graph, made.notes)

    def __str__(self) -> str:
        return ", ".join(map(str, self.passes))

    def _check(self, step: Pass, before: G, after: G, inputs: tuple[Any, ...]) -> None:
        before, after = without_dropout(before), without_dropout(after)
        pairs: list[tuple[Graph, Graph, torch.dtype | None, float]] = [(before, after, None, TOLERANCES[None])]
        wide = before.widened()
        if wide is not before:
            # In float64 from the start: weights that a pass computes in float32 are rounded there, and that is no fault of the pass.
            pairs.insert(0, (wide, step(wide).graph, torch.float64, self.tolerance))
        for reference, other, dtype, tolerance in pairs:
            found = compare_graphs(reference, other, inputs, dtype=dtype)
            if not found.ok(tolerance):
                raise CheckError(
                    f"the pass {step.name} changed the outputs: {found.text(tolerance)}",
                    remedy="Please report this model; leave the pass out meanwhile.",
                )


def replace_check(inner: Pipeline, inputs: tuple[Any, ...] | None) -> Pipeline:
    """An inner pipeline that checks its passes on the outer one's inputs, unless it has its own."""
    own = inner.check or inner.check_inputs is not None
    return inner if own else Pipeline(inner.passes, inputs, inner.tolerance, inner.on_pass)


def _state(graph: Graph) -> tuple[str, tuple[tuple[str, int, int], ...]]:
    """Fingerprint of a graph that any edit changes: its text, and the address and number of writes of each parameter."""
    return graph.text(), tuple((name, value.data.data_ptr(), _writes(value.data)) for name, value in _params(graph))


def _writes(tensor: torch.Tensor) -> int:
    """Count the writes into a tensor; those that inference mode made are not counted."""
    return 0 if tensor.is_inference() else tensor._version


def _equal(a: Graph, b: Graph) -> bool:
    """Whether two graphs have the same program and the same values."""
    ours, theirs = dict(_params(a)), dict(_params(b))
    if ours.keys() != theirs.keys() or any(ours[name].shape != theirs[name].shape for name in ours):
        return False  # seen at once, where the texts of large graphs take a while
    if a.program_size() != b.program_size() or a.text() != b.text():
        return False
    return all(_same(ours[name].data, theirs[name].data) for name in ours)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a is b or (a.is_meta and b.is_meta):
        return True
    return a.dtype == b.dtype and a.shape == b.shape and bool(torch.equal(a.nan_to_num(), b.nan_to_num()))


def _params(graph: Graph) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in graph.params.items() if value.data is not None]


def _noise(graph: Graph) -> tuple[Any, ...]:
    """Normal noise of the example's shapes, always the same; inputs that are no floats stay as they are."""
    generator = torch.Generator().manual_seed(0)
    made: tuple[Any, ...] = map_tensors(
        graph.example_inputs, lambda t: torch.randn(t.shape, generator=generator, dtype=t.dtype) if t.is_floating_point() else t
    )
    return made
