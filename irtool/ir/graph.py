"""The thin view that passes and analyses see: nodes and values in ONNX's operator vocabulary over a host graph.

A host (`torch.fx`, or onnx-graphsurgeon) keeps the program; the view only reads it. A `Graph` is rebuilt from its host after an edit,
so that shapes, uses and constants can never be stale.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from html import escape
from typing import Any, ClassVar, TypeVar

import networkx as nx
import torch

from irtool.errors import GraphError
from irtool.ir.analyses import Analyses
from irtool.ir.descent import Descent
from irtool.ir.edits import Edits
from irtool.ir.frontier import Batch, Frontier, Seen, Stop
from irtool.ir.hooks import Hook
from irtool.ir.nodes import Node, Value
from irtool.ir.pictures import dot_of, networkx_of, operators, svg_of
from irtool.ir.sizes import Sizes
from irtool.ir.text import text_of

__all__ = ["G", "Graph", "Node", "Value"]

G = TypeVar("G", bound="Graph")
"""The host of a graph: what goes in is what comes out."""


class Graph(Edits):
    """Nodes in topological order over a host program. `FxGraph` is the torch host, `OnnxGraph` the ONNX host.

    Attributes:
        nodes: the operators, in an order in which they can run.
        inputs: the graph inputs, flattened.
        outputs: the graph outputs, flattened.
        params: parameters, buffers and constants that some node reads, by qualified name.
        history: the steps (JSON data) that made this graph.
        analyses: what was found out about the graph (`irtool.ir.analyses.once`); an edit ends it.
        example_inputs: what the graph can run on; the sizes of its values are those for these inputs.
        tracer: which tracer served; for an ONNX file, that and its operator set.
        notes: what the model does that the graph cannot hold, a line each.
    """

    example_inputs: tuple[Any, ...]
    tracer: str
    notes: tuple[str, ...] = ()
    data_sized: frozenset[str] = frozenset()
    """Names of values whose sizes are data, such as a number of detections."""
    foreign: frozenset[tuple[str, str]] = frozenset()
    """Operators (domain, name) that whatever runs the program does not have."""
    arithmetic: ClassVar[torch.dtype] = torch.float32
    """The widest type that the host computes in: in float64 no rounding hides a wrong rewrite."""
    trainable: ClassVar[bool] = False
    """Whether the program can be trained: then dropout means something."""
    history: tuple[Mapping[str, Any], ...]
    analyses: Analyses
    nodes: tuple[Node, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    params: Mapping[str, Value]

    def node(self, name: str) -> Node:
        """The node called `name`. Raises KeyError."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def real(self, name: str) -> torch.Tensor | None:
        """A parameter in real numbers: what it stands for, if it is stored in integers. None if it is no such thing."""
        value = self.params.get(name)
        return value.data if value is not None and value.data is not None and value.data.is_floating_point() else None

    def constant(self, value: Value) -> torch.Tensor | None:
        """Return the entries of a value that no input can change: a parameter, or what is computed from sizes alone; None if it flows."""
        return value.data

    def follow(self) -> bool:
        """Read the host again if its tensors were exchanged under the view; whether they were."""
        return False

    @abstractmethod
    def paths(self) -> list[str]:
        """Names by which a user may speak of parts of the model, whether they make channels or not."""

    @abstractmethod
    def program_size(self) -> int:
        """The number of operators in the host's program, with those on sizes that the view does not show."""

    @abstractmethod
    def run(self, *inputs: Any) -> Any:
        """Run the program in eval mode on inputs of the example's types."""

    @abstractmethod
    def run_as(self, inputs: Sequence[Any], dtype: torch.dtype | None = None) -> Any:
        """Run the program in eval mode without touching its inputs.

        Args:
            inputs: the positional arguments.
            dtype: compute in this type, on a copy of the weights; None: in the program's own.

        Raises:
            GraphError: the program cannot run on these inputs.
            OptionError: the host computes in the types that its program states.
        """

    @abstractmethod
    def run_nodes(
        self, inputs: Sequence[Any], names: Collection[str] | None = None, dtype: torch.dtype | None = None
    ) -> Generator[tuple[Node, list[torch.Tensor]], None, Any]:
        """Run the program as `run_as` does, and yield each node with the tensors that it gave; the generator returns the outputs.

        Args:
            inputs: the positional arguments.
            names: of the nodes to be shown; None: all that can be.
            dtype: as for `run_as`.
        """

    @abstractmethod
    def run_hooked(self, inputs: Sequence[Any], hook: Hook, names: Sequence[str] = ()) -> Any:
        """Run the program in eval mode, node by node, with a hook in the place of each node that the view has.

        Args:
            inputs: the positional arguments; not cloned.
            hook: see `irtool.ir.hooks.Hook`.
            names: values to return, as a list, in place of the outputs.
        """

    @abstractmethod
    def values(self, inputs: Sequence[Any], names: Sequence[str]) -> list[torch.Tensor]:
        """Run the program in eval mode, and return values inside, by name."""

    @abstractmethod
    def layer(self, node: Node, x: torch.Tensor) -> torch.Tensor:
        """Compute a layer for another input, as it runs in the program."""

    def against_model(self, inputs: Sequence[Any]) -> float:
        """The relative difference between the program and the model that it was read from, where that is another thing; else 0."""
        return 0.0

    def fixed_elsewhere(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """The axes of the inputs that the model takes in other sizes, and the program does not, or with other numbers (`silent`)."""
        return ()

    def model_tolerance(self) -> float:
        """The largest `against_model` that rounding explains, for the types of the outputs."""
        return 1e-4

    def widened(self: G) -> G:
        """A copy in the widest arithmetic that the host computes in, so that rounding hides no error; the graph itself if it has none wider."""
        return self

    def evaluating(self) -> AbstractContextManager[Any]:
        """A block in which single nodes are evaluated in eval mode."""
        return nullcontext()

    def drawing(self) -> Sequence[Node]:
        """The nodes that draw random numbers in eval mode."""
        return ()

    def counted_macs(self, node: Node) -> int | None:
        """Multiply-accumulates of an operator without a formula, as the host counts them; None if it does not."""
        return None

    def holder(self, node: Node) -> object | None:
        """The layer of the host that holds a node's parameters, if it has such; nodes that share one share its place for a bias."""
        return None

    def initialise(self, seed: int) -> list[str]:
        """Give every parameter a new first value, in place; returns the names of those that keep the old one. `commit` when done.

        Raises:
            GraphError: the program does not say how its layers are initialised.
        """
        raise GraphError("the program does not say how its layers are initialised", remedy="Take the torch model.")

    def like(self: G, other: Graph) -> G:
        """The graph read at another graph's example sizes, where its free axes allow that; else the graph itself."""
        return self

    def at_batch_of(self: G, other: Graph) -> G:
        """The graph read on the example of another one of its host, where these differ in the batch alone and the program lets it.

        What a saved model was traced with is no part of it.
        """
        return self

    def read_on(self: G, inputs: Sequence[Any]) -> G:
        """Return this program over the same weights, read on inputs of other sizes; the graph itself where its host does not need that, or
        where they are of the example's sizes."""
        return self

    @abstractmethod
    def resized(self: G, shapes: Mapping[str, tuple[int, ...]], sizes: Sizes) -> tuple[G, list[str]]:
        """A copy for parameters of other shapes, these empty yet, with the sizes in the program changed, and the names of edited nodes."""

    @abstractmethod
    def complete(self, source: Graph) -> None:
        """Fill in what no node reads from the graph that this one was resized from, once its parameters are set."""

    def runs_on(self, *inputs: Any) -> bool:
        """Whether the program runs on inputs of these sizes."""
        try:
            self.run(*inputs)
        except (RuntimeError, ValueError, AssertionError, GraphError):
            return False
        return True

    def compared(self) -> list[str]:
        """Names of the values by which two programs are compared: the outputs, unless a host has reason to name others."""
        return [value.name for value in self.outputs]

    def hidden_outputs(self) -> tuple[str, ...]:
        """The outputs that are not among `compared`."""
        return ()

    @abstractmethod
    def clone(self: G) -> G:
        """A copy whose edits do not reach this graph."""

    def shared(self: G) -> G:
        """A copy of the program that follows this graph's weights where they can change."""
        return self.clone()

    @abstractmethod
    def observe_inputs(self, batch: Batch, nodes: Sequence[Node], seen: Seen) -> None:
        """Run the program in eval mode on one batch, and call `seen` with a node's name and its first input, as it is when the node reads it."""

    def is_pure(self, node: Node) -> bool:
        """Whether the operator does nothing but compute its result."""
        return True

    def writers(self, after: Node | None = None, before: Node | None = None) -> list[str]:
        """Operators between two nodes, or all, that may write over what they read: their names in the host's program, in order."""
        return []

    def overwritten(self) -> list[Value]:
        """The values that such operators read, and so may have changed."""
        return []

    @abstractmethod
    def evaluate(self, node: Node, values: Mapping[Value, torch.Tensor]) -> Sequence[torch.Tensor]:
        """Run one node's own operator on other tensors of the same rank (labels), arguments as they are."""

    @abstractmethod
    def observe(self, batch: Batch, names: Collection[str], seen: Seen) -> None:
        """Run the program in eval mode on one batch, and call `seen` with the name and output of each node named."""

    @abstractmethod
    def side_by_side(self, batches: Sequence[Batch], stops: Sequence[Stop]) -> Frontier:
        """Run the program on several batches at once, stopping before some nodes; weights may be exchanged at a stop."""

    def backward(
        self,
        reads: Sequence[tuple[Node, Value]],
        batch: Sequence[Any],
        loss: Callable[[Any], torch.Tensor | None],
        seen: Callable[[str, torch.Tensor, torch.Tensor], None],
    ) -> bool:
        """Run a batch forwards in eval mode and a loss of its outputs backwards, and report what nodes read with its gradient.

        Args:
            reads: nodes, and the value of each that is looked at.
            batch: arguments of `forward`.
            loss: a scalar of the outputs; None if they have none.
            seen: called with a node's name, what it read, and the gradient of that for this reader alone.

        Returns:
            False if the loss depends on nothing that was read, or the program has no gradients (it is not `trainable`).
        """
        return False

    def descent(self, names: Collection[str]) -> Descent | None:
        """The graph with some of its parameters ready to be changed by their gradients; None where there are none."""
        return None

    def to_dot(self) -> str:
        """The graph in Graphviz's language, for `dot -Tsvg`."""
        return dot_of(self)

    def to_networkx(self) -> nx.MultiDiGraph:
        """The graph for networkx: nodes by name with `op`, `location` and `attrs`, edges with `value`, `shape` and `dtype`."""
        return networkx_of(self)

    def __repr__(self) -> str:
        sizes = [", ".join("x".join(map(str, value.shape or ())) for value in ends) for ends in (self.inputs, self.outputs)]
        count = sum(value.data.numel() for value in self.params.values() if value.data is not None)
        return f"<{type(self).__name__}: {len(operators(self))} nodes, {sizes[0]} -> {sizes[1]}, {count:,} stored numbers>"

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self))}</p>{svg_of(self)}"

    def __deepcopy__(self: G, memo: dict[int, Any]) -> G:
        return self.clone()

    def text(self) -> str:
        """A stable text form: a line a node, sizes always, weights elided; the same for the same network in both hosts."""
        return text_of(self)
