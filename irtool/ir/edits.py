"""The verbs by which a graph is edited. Each writes through to the host's program, and keeps the view's edges true.

Between two edits operands, uses and outputs are those of the program as it is by then. `Graph.nodes`, and the sizes and attributes of
nodes that stood there before, are those of the last reading; `commit` reads the program anew.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence, Set
from typing import Any

import torch

from irtool.errors import GraphError
from irtool.ir.nodes import Node, Value


class Edits(ABC):
    """The edits of a graph. The public verbs are the same for every host; a host has the methods with an underscore."""

    nodes: tuple[Node, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    params: Mapping[str, Value]

    def insert(
        self,
        op: str,
        operands: Sequence[Value],
        attrs: Mapping[str, Any] | None = None,
        *,
        before: Node | None = None,
        after: Node | None = None,
        name: str = "",
    ) -> Node:
        """Put an operator into the program; nothing reads it until `replace_uses` says so. Its sizes are known at once.

        Args:
            op: its name in the view, which is ONNX's.
            operands: what it reads, in ONNX's order; `add_param` makes new parameters.
            attrs: its attributes, by ONNX's names and in ONNX's forms.
            before, after: the node next to which it stands, one of the two.
            name: a wish; what the node is called tells `Node.name`, after `commit` if another node has the name until then.

        Raises:
            GraphError: the host cannot write this operator, or it does not take these operands.
        """
        if (before is None) == (after is None):
            raise GraphError(f"no place for {op}", where=name, remedy="Give one of before and after.")
        anchor = before if before is not None else after
        assert anchor is not None
        node = self._insert(op, operands, dict(attrs or {}), anchor, after is not None, name)
        for value in node.inputs:
            value.uses.append(node)
        return node

    def add_param(self, name: str, data: torch.Tensor, *, trainable: bool = True) -> Value:
        """Hold a new parameter, which becomes a part of the program when something reads it.

        Args:
            name: a wish; `Value.name` tells what it is called.
            data: its tensor, which is not copied.
            trainable: whether training may change it, where the host trains.
        """
        return self._add_param(name, data, trainable)

    def replace_uses(self, value: Value, by: Value, readers: Collection[Node] | None = None) -> None:
        """Let what reads one value read another one instead.

        Outputs of the graph keep their names, and so does whatever a value stands for that an edit made. A parameter gives way
        to a parameter of any shape.

        Args:
            value: what was read.
            by: what is read from now on.
            readers: the nodes that change over, the node `output` among them if outputs do; None: all that read the value, those on its
                size that the view does not show included, but the node that makes `by`.

        Raises:
            GraphError: a reader holds the value in a way that the host cannot change alone.
        """
        if value is by:
            return
        chosen = {id(node) for node in readers} if readers is not None else None
        moved = [use for use in value.uses if (use is not by.producer if chosen is None else id(use) in chosen)]
        self._redirect(value, by, None if chosen is None else list(dict.fromkeys(moved)))
        for use in dict.fromkeys(moved):
            use.operands.update({role: by for role, operand in use.operands.items() if operand is value})
            use.writes = by if use.writes is value else use.writes
            if use.op == "Output":
                self.outputs = tuple(by if output is value else output for output in self.outputs)
        value.uses[:] = [use for use in value.uses if all(use is not other for other in moved)]
        by.uses.extend(moved)

    def erase(self, node: Node) -> None:
        """Take out a node that nobody reads.

        Raises:
            GraphError: something reads it, or it is an input or the output.
        """
        if node.op in ("Input", "Output"):
            raise GraphError(f"an {node.op.lower()} of the graph cannot be erased", where=node.location, remedy="Leave it in.")
        reader = next((use for value in node.outputs for use in value.uses), None)
        if reader is not None:
            raise GraphError(f"{reader.name} reads it", where=node.location, remedy="Call replace_uses before erase.")
        self._erase(node)
        for value in set(node.inputs):
            value.uses[:] = [use for use in value.uses if use is not node]

    @abstractmethod
    def set_attr(self, node: Node, name: str, value: Any) -> None:
        """Change an attribute of a node in the program; the view shows it after `commit`.

        Args:
            node: whose attribute it is.
            name: what ONNX calls it.
            value: in ONNX's form.

        Raises:
            GraphError: the host has no such attribute, or cannot write this value.
        """

    @abstractmethod
    def set_param(self, name: str, data: torch.Tensor) -> None:
        """Replace a parameter's tensor by one of the same shape, everywhere it is used."""

    def fitting_param(self, name: str, data: torch.Tensor) -> Value:
        """Return the parameter of this name, which a tensor can take the place of.

        Raises:
            GraphError: it has another shape.
        """
        value = self.params[name]
        if tuple(data.shape) != value.shape:
            remedy = "Use replace_uses and add_param for a parameter of another shape."
            raise GraphError(f"shape {tuple(data.shape)} for {value.shape}", where=name, remedy=remedy)
        return value

    @abstractmethod
    def commit(self) -> None:
        """Drop what edits left unread, and read the program again: the end of a series of edits.

        Raises:
            GraphError: a node reads what is made after it, or does not fit what it reads.
        """

    def bypass(self, node: Node) -> None:
        """Take out a node: whoever read its first output reads the first of its inputs that is no parameter."""
        self.replace_uses(node.output, next((value for value in node.inputs if not value.is_param), node.input))
        self.erase(node)

    def only_reader(self, value: Value) -> Node | None:
        """The node that alone reads a value; None if there are several or none, if an output names it, or the program asks for its size."""
        if len(value.uses) != 1 or value.uses[0].op == "Output" or self._read_unseen(value):
            return None
        return value.uses[0]

    @abstractmethod
    def accepts_bias(self, node: Node) -> bool:
        """Whether a convolution or linear layer has a place for a bias in the host."""

    @abstractmethod
    def takes_own_bias(self, node: Node) -> bool:
        """Whether `give_bias` can give a layer a bias that no other layer reads, instead of the one that it has, if any."""

    @abstractmethod
    def give_bias(self, node: Node, data: torch.Tensor, name: str) -> None:
        """Give a convolution or linear layer that has none a bias, called `name` if its host names none."""

    @abstractmethod
    def drop_dead(self) -> list[str]:
        """Take out every operator that changes nothing and that nobody reads, dead before the edits or by them; returns their names."""

    def fold_shapes(self) -> int:
        """Make constants of sizes that the program computes though no input can change them; returns how many."""
        return 0

    def simplify_sizes(self) -> int:
        """Write down what sizes the program computes, as far as they are proven, and compute nothing twice; returns how many operators went."""
        return 0

    @abstractmethod
    def is_constant(self, node: Node, constants: Set[Value]) -> bool:
        """Whether all that the node reads are parameters or `constants`, so that its outputs never change in eval mode."""

    @abstractmethod
    def _insert(self, op: str, operands: Sequence[Value], attrs: dict[str, Any], anchor: Node, after: bool, name: str) -> Node:
        """Write an operator into the program, and read it."""

    @abstractmethod
    def _add_param(self, name: str, data: torch.Tensor, trainable: bool) -> Value:
        """Make the value of a new parameter."""

    @abstractmethod
    def _redirect(self, value: Value, by: Value, readers: Sequence[Node] | None) -> None:
        """Exchange a value in the program, for all readers or for some."""

    @abstractmethod
    def _erase(self, node: Node) -> None:
        """Take a node out of the program, which in the view nobody reads."""

    @abstractmethod
    def _read_unseen(self, value: Value) -> bool:
        """Whether the program reads a value in an operator that the view does not show."""
