"""The torch host: a `torch.fx.GraphModule` behind the view, run, copied, edited."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from irtool.errors import IrtoolError
from irtool.hosts.torch.dtypes import widen
from irtool.hosts.torch.edits import FxEdits
from irtool.hosts.torch.initialise import initialise
from irtool.hosts.torch.modules import call, copy_module
from irtool.hosts.torch.pickled import flat, picklable, rebuilt
from irtool.hosts.torch.purity import is_pure
from irtool.hosts.torch.reader import COUNT, Fix, Reader
from irtool.hosts.torch.running.counting import counted_macs
from irtool.hosts.torch.running.descent import TorchDescent
from irtool.hosts.torch.running.frontier import TorchFrontier, observe
from irtool.hosts.torch.running.gradients import run_backward
from irtool.hosts.torch.running.hooked import run_hooked
from irtool.hosts.torch.running.interpreter import run_with, steps
from irtool.hosts.torch.running.randomness import drawing_nodes
from irtool.hosts.torch.sizes.resize import complete, resized
from irtool.hosts.torch.tracing.checking.compare import tolerance
from irtool.hosts.torch.tracing.checking.faithful import against_model, fixed_elsewhere
from irtool.ir.analyses import Analyses
from irtool.ir.frontier import Batch, Seen, Stop
from irtool.ir.graph import Graph, Node, Value
from irtool.ir.hooks import Compute, Hook
from irtool.ir.sizes import Sizes
from irtool.modes import evaluating
from irtool.nests import look_into, map_tensors, tensors_in


class FxGraph(FxEdits):
    """A `Graph` over a `torch.fx.GraphModule`.

    Args:
        module: the program. It is shared, not copied; passes copy before they edit.
        example_inputs: the positional arguments the graph was traced with (tensors, or nests of them).
        tracer: which tracer served, for reports.
        history: the steps (JSON data) that made this graph out of the traced model, replayed by `load`.
        fix: called before each host node is read, with the example values so far; it may change the node's arguments.

    Raises:
        GraphError: the program cannot run on the shapes of the example inputs.
    """

    def __init__(self, module: fx.GraphModule, example_inputs: Sequence[Any], *, tracer: str = "symbolic", history: Sequence[Mapping[str, Any]] = (),
                 fix: Fix | None = None) -> None:  # fmt: skip
        self.module = picklable(module)
        self.example_inputs = tuple(example_inputs)
        for example in self.example_inputs:
            look_into(example)
        self.tracer = tracer
        self.history: tuple[Mapping[str, Any], ...] = tuple(history)
        self.origin: nn.Module | None = None
        """The model that was traced; None for a graph that a pass made."""
        self.decided: dict[str, bool] = {}
        """The model's parts that decide by `self.training`, by path, and the mode in which they were traced."""
        self.sized: dict[str, str] = {}
        """Nodes whose value a tracer made a plain number of, and the model's line that asked for it."""
        self.branches: tuple[str, ...] | None = ()
        """Those of them that the model decided by; None where its tracer cannot tell."""
        self.excused = False
        """Whether `notes` names something that makes the graph's numbers differ from the model's."""
        self.fixed: tuple[Any, ...] = ()
        """The axes of which the trace took the example's sizes for the model's own (`fx_fixed.Fixed`)."""
        self.refresh(fix)

    trainable: ClassVar[bool] = True
    arithmetic: ClassVar[torch.dtype] = torch.float64

    def refresh(self, fix: Fix | None = None) -> None:
        """Read the host again after an edit."""
        self._analyses = Analyses()
        self._begin()
        reader = self._reader = Reader(self.module, self.example_inputs, fix)
        self.nodes, self.inputs, self.outputs, self.params = tuple(reader.nodes), tuple(reader.inputs), tuple(reader.outputs), reader.params
        self.examples, self._values, self._names = reader.examples, reader.values, reader.names
        self._places = {(id(slot), key): (slot, slot[key].data_ptr()) for slot, key in reader.slots if not slot[key].is_meta}

    @property
    def analyses(self) -> Analyses:  # type: ignore[override]
        """Results of analyses of the graph, as its tensors are now; see `follow`."""
        self.follow()
        return self._analyses

    def follow(self) -> bool:
        """Read the module again if its tensors were exchanged (moved to another device or type, loaded with `assign=True`); whether
        they were. Training in place leaves everything as it is."""
        exchanged = any(slot[key] is None or slot[key].data_ptr() != place for (_, key), (slot, place) in self._places.items())
        if exchanged:
            self.refresh()
        return exchanged

    def run(self, *inputs: Any) -> Any:
        """Run the graph in eval mode without gradients, on copies of the inputs; train/eval flags are put back afterwards."""
        with evaluating(self.module), torch.no_grad():
            return self.module(*map_tensors(inputs, torch.clone))

    def run_as(self, inputs: Sequence[Any], dtype: torch.dtype | None = None) -> Any:
        """Run the program in eval mode without touching its inputs, in `dtype` if that is given; see `Graph.run_as`."""
        return run_with(self, inputs, dtype=dtype)

    def run_nodes(
        self, inputs: Sequence[Any], names: Collection[str] | None = None, dtype: torch.dtype | None = None
    ) -> Generator[tuple[Node, list[torch.Tensor]], None, Any]:
        """Run the program, and yield each node with the tensors that it gave; see `Graph.run_nodes`."""
        run = steps(self, inputs, dtype=dtype)
        while True:
            try:
                node, _, value = next(run)
            except StopIteration as stop:
                return stop.value
            if node is not None and (names is None or node.name in names):
                yield node, tensors_in(value)
            del value

    def run_hooked(self, inputs: Sequence[Any], hook: Hook, names: Sequence[str] = ()) -> Any:
        """Run the program with a hook in the place of each node; see `Graph.run_hooked`."""
        if not names:
            return run_hooked(self, inputs, hook)
        found: dict[str, torch.Tensor] = {}

        def noting(node: Node, reads: Mapping[Value, torch.Tensor], compute: Compute) -> list[torch.Tensor]:
            made = hook(node, reads, compute)
            found.update({value.name: tensor for value, tensor in zip(node.outputs, made, strict=False) if value.name in names})
            return made

        run_hooked(self, inputs, noting)
        return [found[name] for name in names]

    def values(self, inputs: Sequence[Any], names: Sequence[str]) -> list[torch.Tensor]:
        """Run the program, and return values inside, by name."""
        found: dict[str, torch.Tensor] = {}
        for node, tensors in self.run_nodes(inputs):
            found.update({value.name: tensor for value, tensor in zip(node.outputs, tensors, strict=False) if value.name in names})
        return [found[name] for name in names]

    def layer(self, node: Node, x: torch.Tensor) -> torch.Tensor:
        """Compute a layer for another input."""
        return self.evaluate(node, {node.input: x})[0]

    def against_model(self, inputs: Sequence[Any]) -> float:
        """The largest relative difference between the traced model's outputs and the graph's; see `tracing.faithful`."""
        return against_model(self, inputs)

    def model_tolerance(self) -> float:
        """The largest `against_model` that rounding explains; see `Graph.model_tolerance`."""
        return tolerance([torch.empty(0, dtype=value.dtype) for value in self.outputs if value.dtype is not None])

    def fixed_elsewhere(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """The axes whose sizes the trace fixed, though the model takes others; see `tracing.faithful`."""
        return fixed_elsewhere(self, inputs)

    def widened(self) -> FxGraph:
        """A copy in float64."""
        return self.to(torch.float64)

    def evaluating(self) -> AbstractContextManager[Any]:
        """A block in which the module is in eval mode."""
        return evaluating(self.module)

    def drawing(self) -> Sequence[Node]:
        """The nodes that draw random numbers on the example in eval mode."""
        return drawing_nodes(self)

    def counted_macs(self, node: Node) -> int | None:
        """Multiply-accumulates of an operator by torch's counter; None where it does not run on tensors without data."""
        return counted_macs(self, node)

    def holder(self, node: Node) -> nn.Module | None:
        """The module that a node calls; None if it calls a function or a method."""
        if node.host is None or node.host.op != "call_module":
            return None
        return self.module.get_submodule(str(node.host.target))

    def initialise(self, seed: int) -> list[str]:
        """Give every parameter a new first value, in place; see `Graph.initialise`."""
        return initialise(self, seed)

    def resized(self, shapes: Mapping[str, tuple[int, ...]], sizes: Sizes) -> tuple[FxGraph, list[str]]:
        """A copy for parameters of other shapes, which are on the meta device; see `Graph.resized`."""
        return resized(self, shapes, sizes)

    def complete(self, source: Graph) -> None:
        """Fill in what no node reads, and generate the program's code."""
        assert isinstance(source, FxGraph)
        complete(source, self)

    def clone(self, data: Callable[[torch.Tensor], torch.Tensor] = torch.clone) -> FxGraph:
        """A copy that shares nothing with this graph; `data` maps each parameter and buffer (a dtype change, say)."""
        module = copy_module(self.module, lambda name, tensor: data(tensor))
        return FxGraph(module, self.example_inputs, tracer=self.tracer, history=self.history)

    def __reduce__(self) -> Any:
        state = {name: getattr(self, name) for name in ("notes", "decided", "sized", "excused", "fixed")}
        return _unpickled, (flat(self.module), self.example_inputs, self.tracer, self.history, state)

    def shared(self) -> FxGraph:
        """A copy of the program over the same weights."""
        return self.clone(lambda tensor: tensor)

    def at_batch_of(self, other: Graph) -> FxGraph:
        """Read the same program on another torch graph's example; see `Graph.at_batch_of`."""
        theirs, own = other.example_inputs, self.example_inputs
        alike = isinstance(other, FxGraph) and len(theirs) == len(own) and all(isinstance(leaf, torch.Tensor) for leaf in (*theirs, *own))
        pairs = [(x.shape, y.shape) for x, y in zip(theirs, own, strict=True)] if alike else []
        if all(x == y for x, y in pairs) or any(x[1:] != y[1:] for x, y in pairs):
            return self
        try:
            return self.read_on(theirs)
        except IrtoolError:  # its batch is written into it
            return self

    def read_on(self, inputs: Sequence[Any]) -> FxGraph:
        """Read the same program on inputs of other sizes; see `Graph.read_on`.

        Raises:
            GraphError: the program does not run on them.
        """
        leaves, own = tensors_in(tuple(inputs)), tensors_in(self.example_inputs)
        if [leaf.shape for leaf in leaves] == [leaf.shape for leaf in own]:
            return self
        types = iter([leaf.dtype for leaf in own])
        typed = map_tensors(tuple(inputs), lambda tensor: tensor.to(next(types, tensor.dtype)))
        return FxGraph(self.shared().module, typed, tracer=self.tracer, history=self.history)

    def to(self, dtype: torch.dtype) -> FxGraph:
        """A copy with all floating parameters, buffers and example inputs in another type (float64 for checks)."""

        def cast(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(dtype, copy=True) if tensor.is_floating_point() else tensor.clone()

        module = copy_module(self.module, lambda name, tensor: cast(tensor))
        widen(module, dtype, self._float_makers(dtype))
        return FxGraph(module, map_tensors(self.example_inputs, cast), tracer=self.tracer, history=self.history)

    def _float_makers(self, wide: torch.dtype) -> frozenset[str]:
        """The nodes whose result is narrower than `wide` though nothing that they read is a float."""

        def narrow(value: Value) -> bool:
            return value.dtype is not None and value.dtype.is_floating_point and value.dtype.itemsize < wide.itemsize

        calls = [node for node in self.nodes if node.host is not None and node.host.op in ("call_function", "call_method")]
        return frozenset(
            node.host.name
            for node in calls
            if len(node.outputs) == 1
            and narrow(node.output)
            and not any(narrow(value) for name, value in node.operands.items() if not name.startswith(COUNT))
        )

    def program_size(self) -> int:
        """The number of nodes of the fx program."""
        return len(self.module.graph.nodes)

    def paths(self) -> list[str]:
        """The qualified names of all modules."""
        return [path for path, _ in self.module.named_modules()]

    def observe_inputs(self, batch: Batch, nodes: Sequence[Node], seen: Seen) -> None:
        """Run the program on one batch, and call `seen` with the name and first input of each node, when it is read."""
        wanted = set(nodes)
        ordered = [node for node in self.nodes if node in wanted]
        frontier = TorchFrontier(self, [batch], stops := [Stop(node, [(node.input, node)]) for node in ordered])
        with frontier.running(), torch.no_grad():
            for stop in stops:
                if frontier.usable(stop):
                    frontier.advance(stop.node)
                    seen(stop.node.name, frontier.value(0, stop.node.input))

    def is_pure(self, node: Node) -> bool:
        """Whether the operator does nothing but compute its result: what works in place does more."""
        return is_pure(self.module, node.host)

    def writers(self, after: Node | None = None, before: Node | None = None) -> list[str]:
        """Operators between two nodes, or all, that may write over what they read: their names in the fx program, in order."""
        return [host.name for host in self._writers(after, before)]

    def overwritten(self) -> list[Value]:
        """The values that such operators read, and so may have changed."""
        found = [self.value_of(used) for host in self._writers(None, None) for used in host.all_input_nodes]
        return [value for value in found if isinstance(value, Value)]

    def _writers(self, after: Node | None, before: Node | None) -> list[fx.Node]:
        """The program is asked, not the view: an assignment to a part has no node there."""
        hosts = list(self.module.graph.nodes)
        first = 0 if after is None else hosts.index(after.host) + 1
        last = len(hosts) if before is None else hosts.index(before.host)
        return [host for host in hosts[first:last] if host.op not in ("placeholder", "output") and not is_pure(self.module, host)]

    def observe(self, batch: Batch, names: Collection[str], seen: Seen) -> None:
        """Run the program on one batch, and call `seen` with the name and output of each node named, when it is made."""
        observe(self, batch, names, seen)

    def side_by_side(self, batches: Sequence[Batch], stops: Sequence[Stop]) -> TorchFrontier:
        """Run the program on several batches at once, stopping before some nodes."""
        return TorchFrontier(self, batches, stops)

    def backward(
        self,
        reads: Sequence[tuple[Node, Value]],
        batch: Sequence[Any],
        loss: Callable[[Any], torch.Tensor | None],
        seen: Callable[[str, torch.Tensor, torch.Tensor], None],
    ) -> bool:
        """Run a batch forwards in eval mode and a loss of its outputs backwards; see `Graph.backward`."""
        return run_backward(self, reads, set(self.overwritten()), batch, loss, seen)

    def descent(self, names: Collection[str]) -> TorchDescent:
        """The graph with some of its parameters ready to be changed by their gradients."""
        return TorchDescent(self, names)

    def value_of(self, node: fx.Node) -> Any:
        """The view's value (or nest of values) for a host node; None if it holds no tensor."""
        return self._values.get(node)

    def evaluate(self, node: Node, values: Mapping[Value, torch.Tensor]) -> Sequence[torch.Tensor]:
        """Run one node's own operator with other tensors in place of its inputs. Used on labels."""
        host: fx.Node = node.host

        def substitute(arg: fx.Node) -> Any:
            value = self._values.get(arg)
            if value is None:
                return self.examples[arg]
            return pytree.tree_map(lambda v: values[v] if v in values else v.data, value, is_leaf=lambda v: isinstance(v, Value))

        result = call(self.module, host, fx.map_arg(host.args, substitute), fx.map_arg(host.kwargs, substitute))
        return tensors_in(result)


def _unpickled(
    program: Any, inputs: tuple[Any, ...], tracer: str, history: tuple[Mapping[str, Any], ...], state: dict[str, Any]
) -> FxGraph:
    """A graph from what `FxGraph.__reduce__` gave."""
    graph = FxGraph(rebuilt(*program), inputs, tracer=tracer, history=history)
    graph.__dict__.update(state)
    return graph
