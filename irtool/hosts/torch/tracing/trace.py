"""From a user's `nn.Module` to a graph, in three tries: symbolic, concrete (values ride along), `torch.export`."""

from __future__ import annotations

import inspect
import logging
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.fx import _symbolic_trace

from irtool.errors import TraceError
from irtool.garbage import uncollected
from irtool.hosts.torch.graph import FxGraph
from irtool.hosts.torch.modules import attribute, lazy, modules_by_path
from irtool.hosts.torch.tracing.checking.fixed_sizes import decided_by
from irtool.hosts.torch.tracing.checking.witness import Witness
from irtool.hosts.torch.tracing.errors import MadeByForward, changeable, explained, refuse_hidden, refuse_unknown
from irtool.hosts.torch.tracing.exported import exported
from irtool.hosts.torch.tracing.kept_whole import MOST, failing_part
from irtool.hosts.torch.tracing.recording.autograd import own_backwards
from irtool.hosts.torch.tracing.recording.factories import recorded_sizes
from irtool.hosts.torch.tracing.recording.hooks import HiddenHooks, unhook
from irtool.hosts.torch.tracing.recording.tracers import ConcreteTracer, SymbolicTracer, held_at
from irtool.hosts.torch.tracing.rewriting.functionalize import forget_writes, functionalize_writes, restore_writes, written_buffers
from irtool.hosts.torch.tracing.rewriting.train_modes import follow_modes
from irtool.hosts.torch.tracing.state.sandbox import TraceNotes, untouched
from irtool.hosts.torch.tracing.submodule import capture
from irtool.nests import map_tensors
from irtool.tensor_defaults import real_tensors

_LOG = logging.getLogger(__name__)


@uncollected()
@real_tensors()
def trace(model: nn.Module, example_inputs: Any, *, leaf: Sequence[str | type] = (), within: str | None = None) -> FxGraph:
    """Turn a model into a graph.

    Args:
        model: any module. Its layers are shared with the graph, weights and modes with them; what `forward` writes into the
            module itself is taken back.
        example_inputs: a tensor, or a tuple of the positional arguments of `forward`. Shapes matter, values do not.
        leaf: module paths or classes that stay whole; irtool leaves what flows into them alone.
        within: the path of a part. The whole model runs up to it, and the part is traced alone on what reaches it; its
            outputs stay as they are, and `put_back` puts the pruned part into the model.

    The model and its graph are run once on random numbers of the example's shapes: a graph that computes something else is not returned.
    A graph of a tracer that decides by sizes is compared at another batch and image size, too; `notes` says what is fixed.

    Raises:
        TraceError: none of the three tracers could follow the model; the text names the line and the remedy.
    """
    if not isinstance(model, nn.Module):
        exported = isinstance(model, torch.export.ExportedProgram)
        raise TraceError(f"expected an nn.Module, got {type(model).__name__}", remedy=_EXPORTED if exported else _WEIGHTS)
    inputs = tuple(example_inputs) if isinstance(example_inputs, tuple | list) else (example_inputs,)
    if within is not None:
        model, inputs = capture(model, inputs, within)
    model, copied = changeable(model)
    refuse_hidden(model)
    refuse_unknown(model, leaf)
    failures: list[tuple[str, Exception]] = []
    opaque: list[FxGraph] = []
    witness = Witness(model, inputs)
    for graph in _tried(model, inputs, tuple(leaf), ATTEMPTS, witness, failures, later=_stops_at_functions):
        if _stops_at_functions(graph):
            opaque.append(graph)  # a function that its author hid from tracing (fx.wrap): the next tracer may see inside
            continue
        found = _without_caches(model, inputs, tuple(leaf), witness, witness.witnessed(graph))
        found.notes += copied
        whole = _agreeing([each for each in opaque if not _hides(each)][:1], witness, failures) if found.fixed else None
        return found if whole is None else witness.witnessed(whole)
    if (whole := _agreeing(opaque, witness, failures)) is not None:
        return witness.witnessed(whole)
    if (around := _around(model, inputs, tuple(leaf), witness, failures)) is None:
        raise explained(model, inputs, failures)
    around.notes += copied
    return around


_WEIGHTS = "Load the weights into an instance of the model's class first."
_EXPORTED = "Trace the module that was exported, which keeps its sizes free; or torch.nn.Sequential(program.module())."


def _tried(
    model: nn.Module, inputs: tuple[Any, ...], leaf: tuple[str | type, ...], attempts: Sequence[tuple[str, bool]], witness: Witness,
    failures: list[tuple[str, Exception]], *, later: Callable[[FxGraph], bool] = lambda graph: False,
) -> Iterator[FxGraph]:  # fmt: skip
    """Give the graphs that agree with the model, one tracer after the other; the errors of the others go into `failures`.

    Those that are `later` compared are given as they are.
    """
    asides = TraceNotes()
    for name, flags in attempts:
        if flags is False and name != "export" and not (failures and _BOOLEAN.search(str(failures[-1][1]))):
            continue  # that a flag is no bool was not what failed
        asides = asides.again()
        try:
            graph = _attempt(model, inputs, leaf, name, asides, flags=flags)
            if not later(graph):
                witness.agrees(graph)
        except Exception as error:
            failures.append((name, error))
            _LOG.info("%s could not trace %s: %s", name, type(model).__name__, next(iter(str(error).splitlines()), ""))
            continue
        _LOG.info("%s was traced by %s: %d nodes", type(model).__name__, name, len(graph.nodes))
        yield graph


def _around(
    model: nn.Module, inputs: tuple[Any, ...], leaf: tuple[str | type, ...], witness: Witness, failures: Sequence[tuple[str, Exception]]
) -> FxGraph | None:
    """The graph around the parts that no tracer can follow, which stay whole; None where that is the whole model, or does not help."""
    whole: dict[str, str] = {}
    while len(whole) < MOST:
        error = next((error for name, error in reversed(failures) if name == "concrete"), None)
        named = [name for name in leaf if isinstance(name, str)]
        part = failing_part(model, error, {*whole, *named}) if error is not None else None
        if part is None:
            return None
        whole[part.path] = part.said
        failures = []
        graph = next(_tried(model, inputs, (*leaf, *whole), ATTEMPTS[:-1], witness, failures), None)
        if graph is not None:
            graph = witness.witnessed(graph)
            graph.notes += tuple(whole.values())
            return graph
    return None


def _without_caches(model: nn.Module, inputs: tuple[Any, ...], leaf: tuple[str | type, ...], witness: Witness, graph: FxGraph) -> FxGraph:
    """Return the graph, or one that fewer sizes are fixed in: where the model keeps what it made for the example's size (the grid of a
    detector's head) from an earlier run, it is traced after a run at another size, so that it makes it anew."""
    if not (graph.fixed and graph.branches) or model.training:
        return graph
    other = witness.kept_at(graph)
    if other is None:
        return graph
    try:
        again = _attempt(model, inputs, leaf, graph.tracer, TraceNotes(before=other), flags=True)
        witness.agrees(again)
        again = witness.witnessed(again)
    except Exception:  # what the model does at another size cannot be traced
        return graph
    return again if len(again.fixed) < len(graph.fixed) else graph


def _stops_at_functions(graph: FxGraph) -> bool:
    """Whether a function of Python stands in the graph as a whole."""
    return any(node.op == "Opaque" and node.host.op == "call_function" and inspect.isfunction(node.host.target) for node in graph.nodes)


def _agreeing(graphs: Sequence[FxGraph], witness: Witness, failures: list[tuple[str, Exception]]) -> FxGraph | None:
    """The first of some graphs that agrees with the model; the errors of the others go into `failures`."""
    for graph in graphs:
        try:
            witness.agrees(graph)
        except TraceError as error:
            failures.append((graph.tracer, error))
        else:
            return graph
    return None


def _hides(graph: FxGraph) -> bool:
    """Whether a function stayed whole that is the user's own, not one that torch has written in Python (`torch.stft`)."""
    return any(
        node.op == "Opaque" and not node.callee.startswith("torch.") and inspect.isfunction(node.host.target) for node in graph.nodes
    )


def _attempt(
    model: nn.Module, inputs: tuple[Any, ...], leaf: tuple[str | type, ...], name: str, asides: TraceNotes, *, flags: bool
) -> FxGraph:
    """One tracer's graph, whose layers follow the modes; `flags`: see `untouched`."""
    module, asides = _program(model, inputs, leaf, name, asides, flags=flags)
    unhook(module, asides)
    plain = functionalize_writes(module, inputs)
    graph = FxGraph(follow_modes(module, inputs, asides if flags else None, model), inputs, tracer=name)
    if plain and restore_writes(plain, lambda node: getattr(graph.value_of(node), "dtype", None)):
        graph.module.recompile()
        graph.refresh()
    if asides.made and graph.drawing():
        raise MadeByForward(next(iter(asides.made)))
    graph.origin, graph.notes = model, asides.notes(model)
    graph.sized, graph.branches = asides.sized, None if name == "export" else tuple(asides.branches)
    graph.excused = asides.forgotten or bool(asides.cast)
    graph.decided = decided_by(model, [path for path in asides.asked if path not in asides.following_modes])
    return graph


def _program(
    model: nn.Module, inputs: tuple[Any, ...], leaf: tuple[str | type, ...], name: str, asides: TraceNotes, *, flags: bool
) -> tuple[fx.GraphModule, TraceNotes]:
    """Run one tracer; return its program, and notes on what that lacks.

    A module whose hooks cannot be followed stays whole. What forward does with a buffer alone is not seen by the tracers: where it
    also writes into one, every use of that is recorded, or if that fails no write.
    """
    try:
        with untouched(model, asides, flags=flags):
            if asides.before is not None:
                with torch.no_grad():
                    model(*map_tensors(asides.before, torch.clone))
            module = TRACERS[name](model, inputs, leaf, asides)
    except HiddenHooks as error:
        return _program(model, inputs, (*leaf, error.path), name, asides.again(), flags=flags)
    if asides.recorded or name == "export":
        return module, asides
    paths = {**asides.begun, **dict.fromkeys(written_buffers(module, model))}
    if not paths:
        return module, asides
    again = asides.again()
    again.recorded = {id(attribute(model, path)): path for path in paths}
    try:
        whole = _program(model, inputs, leaf, name, again, flags=flags)
        if not whole[1].begun:
            return whole
    except Exception:  # a buffer that is read as a number, or exchanged, while it is traced
        pass
    forget_writes(module, model, paths)
    asides.forgotten = True
    asides.written.update(dict.fromkeys(paths))
    return module, asides


def _symbolic(model: nn.Module, inputs: Sequence[Any], leaf: Sequence[str | type], asides: TraceNotes) -> fx.GraphModule:
    return _traced(SymbolicTracer(leaf, len(inputs), asides), model, inputs, asides)


def _concrete(model: nn.Module, inputs: Sequence[Any], leaf: Sequence[str | type], asides: TraceNotes) -> fx.GraphModule:
    with _unwrapped():
        return _traced(ConcreteTracer(inputs, leaf, asides), model, inputs, asides)


def _traced(tracer: SymbolicTracer, model: nn.Module, inputs: Sequence[Any], asides: TraceNotes) -> fx.GraphModule:
    plain = {
        (path, name): held
        for path, module in modules_by_path(model).items()
        for name, held in vars(module).items()
        if torch.is_tensor(held)
    }
    with own_backwards(asides, type(tracer).own_backward), recorded_sizes(modules_by_path(model).values()):
        graph = tracer.trace(model, _defaults(model, inputs))
    for (path, name), held in plain.items():
        own = vars(model.get_submodule(path))
        if isinstance(own.get(name), fx.Proxy):  # the program reads what was there first, not what forward put in its place
            own[name] = held
            asides.written.setdefault(f"{path}.{name}" if path else name)
    if any(id(held_at(model, path)) != held for held, path in asides.recorded.items()):
        raise TraceError("a buffer is exchanged by what is computed", remedy="Write into it in place.")
    _drop_checks(graph)
    made = lazy(tracer.root, graph, type(model).__name__)
    for name in tracer.added:
        del tracer.root._modules[name]
    return made


@contextmanager
def _unwrapped() -> Iterator[None]:
    """Trace into functions that were marked `torch.fx.wrap`: with values at hand there is no reason to stop at them."""
    hidden = getattr(_symbolic_trace, "_wrapped_fns_to_patch", {})
    kept = dict(hidden)
    hidden.clear()
    try:
        yield
    finally:
        hidden.update(kept)


def _defaults(model: nn.Module, inputs: Sequence[Any]) -> dict[str, Any] | None:
    """Arguments that are None, and those that the example leaves out, are constants (`mask=None` and the like)."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    placed = [p for p in parameters if p.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    named = [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    absent = [p.name for p, given in zip(placed, inputs, strict=False) if given is None]
    rest = {p.name: p.default for p in [*placed[len(inputs) :], *named] if p.default is not inspect.Parameter.empty}
    return {**dict.fromkeys(absent), **rest} or None


def _drop_checks(graph: fx.Graph) -> None:
    """Check that an argument is None by functions that an archive knows."""
    for node in graph.find_nodes(op="call_function", target=_symbolic_trace._assert_is_none):
        argument, text = node.args
        with graph.inserting_before(node):
            absent = graph.call_function(operator.is_, (argument, None))
        node.target, node.args = torch._assert, (absent, text)


TRACERS: dict[str, Callable[[nn.Module, Sequence[Any], Sequence[str | type], TraceNotes], fx.GraphModule]] = {
    "symbolic": _symbolic, "concrete": _concrete, "export": exported,
}  # fmt: skip
ATTEMPTS = (("symbolic", True), ("symbolic", False), ("concrete", True), ("concrete", False), ("export", False))
"""In this order; without noting flags again where the model wants its flags to be of type bool."""
_BOOLEAN = re.compile("Flag|bool|something else than the model")
