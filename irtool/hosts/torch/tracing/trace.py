"""From a user's `nn.Module` to a graph, in three tries: symbolic, concrete (values ride along), `torch.export`."""

from __future__ import annotations

import inspect
import io
import logging
import math
import operator
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import fx, nn
from torch.fx import _symbolic_trace
from torch.utils import _pytree as pytree

from irtool.errors import TraceError
from irtool.garbage import uncollected
from irtool.hosts.torch.graph import FxGraph
from irtool.hosts.torch.modules import attribute, lazy, modules_by_path
from irtool.hosts.torch.tracing.checking.compare import Change, agrees, larger_batch, observed, other_images
from irtool.hosts.torch.tracing.checking.fixed_sizes import decided_by
from irtool.hosts.torch.tracing.checking.witness import Witness
from irtool.hosts.torch.tracing.errors import MadeByForward, changeable, explained, refuse_hidden, refuse_unknown
from irtool.hosts.torch.tracing.kept_whole import MOST, failing_part
from irtool.hosts.torch.tracing.recording.aliases import canonical
from irtool.hosts.torch.tracing.recording.autograd import own_backwards
from irtool.hosts.torch.tracing.recording.factories import recorded_sizes, symbolic_numbers
from irtool.hosts.torch.tracing.recording.hooks import HiddenHooks, hooked, unhook
from irtool.hosts.torch.tracing.recording.tracers import ConcreteTracer, SymbolicTracer, held_at
from irtool.hosts.torch.tracing.rewriting.functionalize import forget_writes, functionalize_writes, restore_writes, written_buffers
from irtool.hosts.torch.tracing.rewriting.train_modes import follow_modes
from irtool.hosts.torch.tracing.state.sandbox import TraceNotes, untouched
from irtool.hosts.torch.tracing.submodule import capture
from irtool.nests import tensors_in
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
        raise TraceError(
            f"expected an nn.Module, got {type(model).__name__}", remedy="Load the weights into an instance of the model's class first."
        )
    inputs = tuple(example_inputs) if isinstance(example_inputs, tuple | list) else (example_inputs,)
    if within is not None:
        model, inputs = capture(model, inputs, within)
    model, copied = changeable(model)
    refuse_hidden(model)
    refuse_unknown(model, leaf)
    failures: list[tuple[str, Exception]] = []
    opaque: FxGraph | None = None
    witness = Witness(model, inputs)
    for graph in _tried(model, inputs, tuple(leaf), ATTEMPTS, witness, failures):
        if not any(
            node.op == "Opaque" and node.host.op == "call_function" and inspect.isfunction(node.host.target) for node in graph.nodes
        ):
            found = witness.witnessed(graph)
            found.notes += copied
            return witness.witnessed(opaque) if opaque is not None and found.fixed and not _hides(opaque) else found
        opaque = opaque or graph  # a function that its author hid from tracing (fx.wrap): the next tracer may see inside
    if opaque is not None:
        return witness.witnessed(opaque)
    if (around := _around(model, inputs, tuple(leaf), witness, failures)) is None:
        raise explained(model, inputs, failures)
    around.notes += copied
    return around


def _tried(
    model: nn.Module, inputs: tuple[Any, ...], leaf: tuple[str | type, ...], attempts: Sequence[tuple[str, bool]], witness: Witness,
    failures: list[tuple[str, Exception]],
) -> Iterator[FxGraph]:  # fmt: skip
    """Give the graphs that agree with the model, one tracer after the other; the errors of the others go into `failures`."""
    asides = TraceNotes()
    for name, flags in attempts:
        if flags is False and name != "export" and not (failures and _BOOLEAN.search(str(failures[-1][1]))):
            continue  # that a flag is no bool was not what failed
        asides = asides.again()
        try:
            graph = _attempt(model, inputs, leaf, name, asides, flags=flags)
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
    graph.sized = asides.sized
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
    with own_backwards(asides, type(tracer).own_backward), recorded_sizes(modules_by_path(model).values()):
        graph = tracer.trace(model, _defaults(model, inputs))
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


def _export(model: nn.Module, inputs: Sequence[Any], leaf: Sequence[str | type], asides: TraceNotes) -> fx.GraphModule:
    if leaf:
        raise TraceError("torch.export cannot keep named modules whole", remedy="Drop leaf=.")
    batch, image = _dynamic_shapes(model, inputs)
    module = _free_or_none(model, inputs, [batch] if batch is not None else [], asides)
    if module is None:
        module = _exported(model, inputs, None, asides)
    if image is None or len(module.graph.nodes) > _SMALL:
        return module
    return _free_or_none(model, inputs, [change for change in (batch, image) if change is not None], asides) or module


_SMALL = 300
"""Nodes of a program that torch.export is asked for once more with images of any size: that takes it up to 30 times as long."""


def _free_or_none(model: nn.Module, inputs: Sequence[Any], changes: Sequence[Change], asides: TraceNotes) -> fx.GraphModule | None:
    """The program with the axes of some changes free; None where torch.export cannot, or the program does not agree with the model.

    torch takes sizes of 0 and 1 for the model's own, so that a batch of one is doubled.
    """
    if not changes:
        return None
    doubled = changes[0].what == "batch" and _batch(inputs, changes[0]) < 2
    try:
        module = _exported(model, changes[0].inputs if doubled else inputs, _free_axes(inputs, changes), asides)
    except Exception:  # torch.export raises whatever its parts raise
        return None
    return module if agrees(model, module, inputs) else None


def _exported(model: nn.Module, inputs: Sequence[Any], shapes: Any, asides: TraceNotes) -> fx.GraphModule:
    """The program of torch.export, without its guards, in the modes of the model."""
    numbers = symbolic_numbers(modules_by_path(model).values())
    with _silent(), own_backwards(asides), untouched(model, asides, flags=False), numbers:
        module = torch.export.export(model, tuple(inputs), strict=False, dynamic_shapes=shapes).module()
    for refused in ("train", "eval"):  # exported modules refuse both; `follow_modes` puts back what the modes change
        module.__dict__.pop(refused, None)
    modes = {path: child.training for path, child in modules_by_path(model).items()}
    asides.hooked.update((path, None) for path, child in modules_by_path(model).items() if hooked(child))
    for path, child in modules_by_path(module).items():  # torch.export leaves them all in train mode
        child.training = modes.get(path, model.training)
    for node in list(module.graph.nodes):
        if node.op == "call_function":
            node.target = _PLAIN.get(node.target) or canonical(node.op, node.target, {})[0]
        if not node.users and _is_guard(node):
            module.graph.erase_node(node)
    module.recompile()
    return module


@contextmanager
def _silent() -> Iterator[None]:
    """Silence torch.export: where it fails it prints the graph that it has so far and logs an advice; the remedy is in our error."""
    logger = logging.getLogger("torch.export._trace")
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


_PLAIN: dict[Any, Callable[..., Any]] = {
    torch.sym_float: float, torch.sym_int: int, math.trunc: int, torch.sym_max: max, torch.sym_min: min,
    **{getattr(getattr(torch.ops.aten, f"__{name}__"), kind): getattr(getattr(torch.ops.aten, f"bitwise_{name}"), kind)
       for name in ("and", "or", "xor") for kind in ("Tensor", "Scalar")},
}  # fmt: skip
"""Functions that torch.export calls on sizes and on flags, by the names that archives know; on plain numbers they are the same."""


def _is_guard(node: fx.Node) -> bool:
    name = str(node.target)
    return node.op != "placeholder" and any(part in name for part in ("_guards", "_assert", "sym_constrain", "aten.sym_"))


def _dynamic_shapes(model: nn.Module, inputs: Sequence[Any]) -> tuple[Change | None, Change | None]:
    """Another batch and another image size, where the model takes them."""
    batch = larger_batch(inputs)
    image = next((change for change in other_images(inputs) if observed(model, change.inputs) is not None), None)
    return (batch if batch is not None and observed(model, batch.inputs) is not None else None), image


def _batch(inputs: Sequence[Any], change: Change) -> int:
    tensors = tensors_in(tuple(inputs))
    return min(tensors[number].shape[0] for number in change.axes)


def _free_axes(inputs: Sequence[Any], changes: Sequence[Change]) -> Any:
    """`dynamic_shapes` for torch.export, which settles by itself what the model does not leave free."""
    auto, count = torch.export.Dim.AUTO, iter(range(10**6))

    def axes(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return None
        number = next(count)
        return {axis % leaf.dim(): auto for change in changes for axis in change.axes.get(number, ())} or None

    return tuple(pytree.tree_map(axes, item) for item in inputs)


TRACERS: dict[str, Callable[[nn.Module, Sequence[Any], Sequence[str | type], TraceNotes], fx.GraphModule]] = {
    "symbolic": _symbolic, "concrete": _concrete, "export": _export,
}  # fmt: skip
ATTEMPTS = (("symbolic", True), ("symbolic", False), ("concrete", True), ("concrete", False), ("export", False))
"""In this order; without noting flags again where the model wants its flags to be of type bool."""
_BOOLEAN = re.compile("Flag|bool|something else than the model")
