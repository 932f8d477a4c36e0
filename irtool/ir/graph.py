"""The thin view that passes and analyses see: nodes and values in ONNX's operator vocabulary over a host graph.

A host (`torch.fx`, or onnx-graphsurgeon) keeps the program; the view only reads it. A `Graph` is rebuilt from its host after an edit,
so that shapes, uses and constants can never be stale.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch

from irtool.errors import GraphError
from irtool.ir.analyses import Analyses
from irtool.ir.descent import Descent
from irtool.ir.frontier import Batch, Frontier, Seen, Stop
from irtool.ir.hooks import Hook
from irtool.ir.sizes import Sizes
from irtool.ir.text import text_of

G = TypeVar("G", bound="Graph")
"""The host of a graph: what goes in is what comes out."""


@dataclass(eq=False, slots=True)
class Value:
    """A tensor between nodes, or a parameter. Identity is equality; the name is for people.

    Attributes:
        name: unique in its graph; for a parameter its qualified name in the module.
        shape: sizes for the example inputs, or None if the value is not a tensor.
        dtype: the element type, or None if the value is not a tensor.
        producer: the node that computes it; None for parameters.
        data: the tensor held by a parameter, buffer or constant, else None.
        uses: the nodes that read it.
    """

    name: str
    shape: tuple[int, ...] | None
    dtype: torch.dtype | None = None
    producer: Node | None = None
    data: torch.Tensor | None = None
    uses: list[Node] = field(default_factory=list)

    @property
    def is_param(self) -> bool:
        """Whether the value is a parameter, buffer or constant of the model."""
        return self.data is not None

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape of a value that is known to be a tensor."""
        assert self.shape is not None, f"{self.name} is not a tensor"
        return self.shape

    def __repr__(self) -> str:
        return f"%{self.name}{list(self.shape) if self.shape is not None else ''}"


@dataclass(eq=False, slots=True)
class Node:
    """One operator application.

    Attributes:
        name: unique in its graph, stable across `clone`.
        op: the operator in ONNX's vocabulary, `Opaque` where that has no name for it.
        operands: the tensor inputs by role (`input`, `weight`, ...), in order.
        outputs: one value, or several for a node that returns a tuple.
        attrs: the other arguments, normalised; sizes are those seen with the example inputs.
        location: module path or source position, for messages.
        host: the host's own node.
        callee: the host's name for the operator, for messages about `Opaque` nodes.
        writes: the value that the operator writes into (`x` of `x.add_(y)`); None if it writes nothing.
    """

    name: str
    op: str
    operands: dict[str, Value]
    outputs: tuple[Value, ...]
    attrs: dict[str, Any]
    location: str
    host: Any
    callee: str
    writes: Value | None = None

    @property
    def inputs(self) -> tuple[Value, ...]:
        """All tensor inputs, parameters included, in order."""
        return tuple(self.operands.values())

    @property
    def input(self) -> Value:
        """The first input."""
        return next(iter(self.operands.values()))

    @property
    def output(self) -> Value:
        """The first output."""
        return self.outputs[0]

    def get(self, role: str) -> Value | None:
        """The operand in `role`, or None."""
        return self.operands.get(role)

    def __repr__(self) -> str:
        return f"{self.name} = {self.op}({', '.join(map(repr, self.inputs))})"


class Graph(ABC):
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
        """Give every parameter a new first value, in place; returns the names of those that keep the old one. `tidied` when done.

        Raises:
            GraphError: the program does not say how its layers are initialised.
        """
        raise GraphError("the program does not say how its layers are initialised", remedy="Take the torch model.")

    def like(self: G, other: Graph) -> G:
        """The graph read at another graph's example sizes, where its free axes allow that; else the graph itself."""
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
    def tidied(self) -> None:
        """Drop what nothing reads, and read the host again: the end of a series of edits."""

    @abstractmethod
    def set_param(self, name: str, data: torch.Tensor) -> None:
        """Replace a parameter's tensor by one of the same shape, everywhere it is used."""

    @abstractmethod
    def accepts_bias(self, node: Node) -> bool:
        """Whether a convolution or linear layer has a place for a bias in the host."""

    @abstractmethod
    def takes_own_bias(self, node: Node) -> bool:
        """Whether `give_bias` can give a layer a bias that no other layer reads, instead of the one that it has, if any."""

    @abstractmethod
    def give_bias(self, node: Node, data: torch.Tensor, name: str) -> None:
        """Give a convolution or linear layer that has none a bias, called `name` if its host names none. `tidied` when done."""

    @abstractmethod
    def add_constant(self, node: Node, data: torch.Tensor, name: str) -> None:
        """Put an addition of a constant, called `name`, between a node's first output and all that read it. `tidied` when done."""

    @abstractmethod
    def observe_inputs(self, batch: Batch, nodes: Sequence[Node], seen: Seen) -> None:
        """Run the program in eval mode on one batch, and call `seen` with a node's name and its first input, as it is when the node reads it."""

    @abstractmethod
    def bypass(self, node: Node) -> None:
        """Take out a node: whoever read its output reads the first of its inputs that is no parameter. `tidied` when done."""

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
    def drop_dead(self) -> list[str]:
        """Take out every operator that changes nothing and that nobody reads; their names. `tidied` when done."""

    def settle_shapes(self) -> int:
        """Make constants of sizes that the program computes though no input can change them; how many. `tidied` when done."""
        return 0

    @abstractmethod
    def is_constant(self, node: Node, constants: Set[Value]) -> bool:
        """Whether all that the node reads are parameters or `constants`, so that its outputs never change in eval mode."""

    @abstractmethod
    def settle(self, node: Node, data: torch.Tensor) -> None:
        """Put a constant in the place of a node of one output. `tidied` when done."""

    @abstractmethod
    def select(self, node: Node, name: str) -> None:
        """Put a channel selection of all channels, called `name`, in front of a node's first input. `tidied` when done."""

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

    def text(self) -> str:
        """A stable text form: a line a node, sizes always, weights elided; the same for the same network in both hosts."""
        return text_of(self)
