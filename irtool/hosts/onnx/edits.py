"""The edit verbs, written through to an onnx-graphsurgeon graph."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence, Set
from typing import Any

import onnx_graphsurgeon as gs
import torch
from onnx import ModelProto

from irtool.errors import GraphError
from irtool.hosts.onnx.edges import cleanup, exchange, redirect
from irtool.hosts.onnx.files.duplicates import merge_duplicates
from irtool.hosts.onnx.files.subgraphs import all_nodes, bodies
from irtool.hosts.onnx.parameters import OnnxParameters, array_of, scalars_of
from irtool.hosts.onnx.reader import Fix
from irtool.hosts.onnx.running.interpreter import restated
from irtool.hosts.onnx.sizes.static_shapes import fold_reshapes, fold_shapes
from irtool.hosts.onnx.written import check_operator, put_attribute
from irtool.ir.graph import Node, Value


class OnnxEdits(OnnxParameters):
    """The edit verbs of `OnnxGraph`.

    Attributes:
        header: the file's own description.
        selects: the indices of channel selections that passes inserted (Gather), by name: passes own them.
        scalars: constants of one entry. They are arguments of elementwise operators, and stay so after slicing.
        opset: of the program.
    """

    header: ModelProto
    selects: set[str]
    scalars: frozenset[str]
    opset: int

    def _begin(self) -> None:
        """Note that nothing is edited yet."""
        super()._begin()
        self._inserted: list[gs.Node] = []

    @abstractmethod
    def refresh(self, fix: Fix | None = None) -> None:
        """Read the host again after an edit."""

    @property
    @abstractmethod
    def proto(self) -> ModelProto:
        """The graph as an ONNX model."""

    def commit(self) -> None:
        """Drop what nothing reads, and read the program again; see `Graph.commit`."""
        cleanup(self.host)
        if self._inserted:
            self._name_inserted()
            self._check_order()
        self.refresh()
        outputs = [value for value in self.outputs if value.shape is not None and value.name not in self.data_sized]
        self.header = restated(self.header, {value.name: value.sizes for value in outputs})

    def _name_inserted(self) -> None:
        """Give each inserted node a name of its own, now that erased ones need theirs no longer."""
        new = {id(node) for node in self._inserted}
        taken = {"input", "output", *(node.name for node in self.host.nodes if id(node) not in new)}
        for node in self._inserted:
            while node.name in taken:
                node.name += "_"
            taken.add(node.name)

    def _check_order(self) -> None:
        """Refuse a node that reads what is made after it. Raises GraphError."""
        made: set[int] = set()
        for node in self.host.nodes:
            late = next((tensor for tensor in node.inputs if tensor.inputs and id(tensor.inputs[0]) not in made), None)
            if late is not None:
                raise GraphError(f"{node.name} reads {late.name}, which is made after it", remedy="Insert a node behind what it reads.")
            made.add(id(node))

    def _insert(self, op: str, operands: Sequence[Value], attrs: dict[str, Any], anchor: Node, after: bool, name: str) -> Node:
        """Write an operator into the program, and read it."""
        tensors = [self._tensor(value) for value in operands]
        kind, attrs = ("Gather", {"axis": 1, **attrs}) if op == "ChannelSelect" else (op, attrs)
        check_operator(kind, self.opset)
        name = name or kind.lower()
        node = gs.Node(kind, name, {}, tensors, [gs.Variable(self.free_name(f"{name}.output"))])
        self.host.nodes.insert(self._point(anchor, after), node)
        if op == "ChannelSelect":
            self.selects.add(tensors[1].name)
        try:
            for key, value in attrs.items():
                put_attribute(node, key, value, self.opset, lambda label, data: self._argument(label, data, operands[0]))
            self._reader.read(node)
        except GraphError:
            node.inputs.clear()
            node.outputs.clear()
            self.host.nodes[:] = [other for other in self.host.nodes if other is not node]
            raise
        self._inserted.append(node)
        self._fresh.add(id(node.outputs[0]))
        made = self._reader.value(node.outputs[0]).producer
        assert made is not None
        return made

    def _argument(self, label: str, value: Any, meets: Value) -> gs.Constant:
        """A constant that holds an attribute: whole numbers in a list, or a number of the type of what it meets."""
        data = torch.as_tensor(value)
        sizes = data.dim() and not data.is_floating_point()
        return gs.Constant(self.free_name(label), array_of(data.to(torch.int64 if sizes else meets.dtype)))

    def _point(self, anchor: Node, after: bool) -> int:
        """Return the position of a node that is put in front of another one or behind it."""
        host = anchor.host
        if host is None and anchor.op == "Output":
            return len(self.host.nodes)
        if host is None:
            makers = self._tensor(anchor.output).inputs if anchor.op == "Constant" else []
            if not makers:
                return 0
            host = makers[0]
        return place_of(self.host, host) + after

    def _redirect(self, value: Value, by: Value, readers: Sequence[Node] | None) -> None:
        """Exchange a value in the program, for all readers or for some."""
        old, new = self._tensor(value), self._tensor(by)
        is_input, is_output = (any(tensor is old for tensor in edge) for edge in (self.host.inputs, self.host.outputs))
        given = is_output and (readers is None or any(node.op == "Output" for node in readers))
        if given and is_input:
            raise GraphError("an output is the input itself, under its name", where=value.name, remedy="Leave the output out of readers.")
        if readers is None:
            redirect(old, new, but=by.producer.host if by.producer is not None else None)
        for node in readers or ():
            if node.host is not None:
                self._exchange_in(node, old, new)
        if given:
            self._give_output(old, new)
        elif readers is None and id(new) in self._fresh and not is_input:
            self._swap_names(old, new)

    def _exchange_in(self, node: Node, old: gs.Tensor, new: gs.Tensor) -> None:
        """Let one node, and the bodies in it, read another tensor."""
        found = False
        for host in _with_inner(node.host):
            found |= any(tensor is old for tensor in host.inputs)
            exchange(host.inputs, old, new)
        if not found:
            remedy = "Exchange what it reads as a whole."
            raise GraphError(f"{node.name} does not read {old.name} by itself", where=node.location, remedy=remedy)

    def _give_output(self, old: gs.Tensor, new: gs.Tensor) -> None:
        """Let an output of the graph be made of another tensor, under its own name."""
        named = any(tensor is new for tensor in self.host.outputs)
        if named or not new.inputs or id(new) in {id(tensor) for tensor in self.host.inputs}:
            copy = gs.Variable(self.free_name(f"{old.name}.output"), new.dtype, new.shape)
            node = gs.Node("Identity", f"{old.name}.copy", {}, [new], [copy])
            self.host.nodes.append(node)
            self._inserted.append(node)
            new = copy
        exchange(self.host.outputs, old, new)
        new.dtype, new.shape = old.dtype, old.shape
        self._swap_names(old, new)

    def _swap_names(self, old: gs.Tensor, new: gs.Tensor) -> None:
        """Let one tensor have the other's name: what stands for it is known by it."""
        reader = self._reader
        tables: list[dict[str, Any]] = [reader.values, reader.types, reader.params, reader.known, self._constants()]
        for table in tables:
            there = {old.name: new.name, new.name: old.name}
            table.update({there[name]: table.pop(name) for name in list(there) if name in table})
        old.name, new.name = new.name, old.name
        for name in (old.name, new.name):
            for held in (reader.values.get(name), reader.params.get(name)):
                if held is not None:
                    held.name = name

    def _erase(self, node: Node) -> None:
        """Take a node out of the program, which in the view nobody reads. `cleanup` takes what makes nothing."""
        host = node.host
        for tensor in host.outputs:
            reader = next((other for other in tensor.outputs if self._is_read(other)), None)
            if reader is not None:
                raise GraphError(f"{reader.name} reads it", where=node.location, remedy="Call replace_uses before erase.")
        host.outputs.clear()
        host.inputs.clear()

    def _is_read(self, node: gs.Node) -> bool:
        """Whether anything comes of a host node."""
        outputs = {id(tensor) for tensor in self.host.outputs}
        waiting, seen = [node], set[int]()
        while waiting:
            here = waiting.pop()
            if id(here) in seen:
                continue
            seen.add(id(here))
            if any(id(tensor) in outputs for tensor in here.outputs):
                return True
            waiting += [reader for tensor in here.outputs for reader in tensor.outputs]
        return False

    def drop_dead(self) -> list[str]:
        """Take out every operator that nobody reads; their names."""
        before = [node.name for node in self.host.nodes]
        cleanup(self.host)
        left = {node.name for node in self.host.nodes}
        return [name for name in before if name not in left]

    def set_attr(self, node: Node, name: str, value: Any) -> None:
        """Change an attribute of a node in the program; see `Graph.set_attr`."""
        put_attribute(node.host, name, value, self.opset, lambda label, data: self._argument(label, data, node.input))

    def _read_unseen(self, value: Value) -> bool:
        """Whether the program reads a value in an operator that the view does not show."""
        shown = {id(host) for use in value.uses if use.host is not None for host in _with_inner(use.host)}
        return any(id(reader) not in shown for reader in self._tensor(value).outputs)

    def is_constant(self, node: Node, constants: Set[Value]) -> bool:
        """Whether all that the node reads are parameters or `constants`."""
        names = {value.name for value in constants}
        given = [tensor for tensor in node.host.inputs if tensor.name]
        return bool(given) and all(isinstance(tensor, gs.Constant) or tensor.name in names for tensor in given)

    # Sizes that the program computes: the view does not show them.

    def fold_shapes(self) -> int:
        """Make constants of sizes that the program computes though no input can change them; how many."""
        before = scalars_of(self.host)
        gone = fold_shapes(self.host, self.proto)
        self.scalars |= scalars_of(self.host) - before
        return gone

    def simplify_sizes(self) -> int:
        """Write down what sizes the program computes, as far as one example more or less cannot change them, and compute nothing
        twice; how many operators went.
        """
        before, count = scalars_of(self.host), len(self.host.nodes)
        while fold_shapes(self.host, self.proto) + fold_reshapes(self.host, self.proto) + merge_duplicates(self.host):
            pass
        self.scalars |= scalars_of(self.host) - before
        return count - len(self.host.nodes)

    # Biases: where one can stand, the host alone knows.

    def accepts_bias(self, node: Node) -> bool:
        """Always: a product by MatMul gets an Add."""
        return True

    def takes_own_bias(self, node: Node) -> bool:
        """Whether the bias that it has is no computed value."""
        bias = node.get("bias")
        return bias is None or bias.is_param

    def give_bias(self, node: Node, data: torch.Tensor, name: str) -> None:
        """Give a contraction that has none a bias called `name`."""
        bias = self._add_param(name, data, True)
        if node.host.op == "MatMul":
            total = self.insert("Add", [node.output, bias], after=node, name=f"{node.name}.bias")
            self.replace_uses(node.output, total.output)
            return
        while len(node.host.inputs) > 2:
            node.host.inputs.pop()
        node.host.inputs.append(self._tensor(bias))
        old = node.get("bias")
        if old is not None:
            old.uses[:] = [use for use in old.uses if use is not node]
        node.operands["bias"] = bias
        bias.uses.append(node)


def _with_inner(host: gs.Node) -> Iterator[gs.Node]:
    """A host node, and the nodes in its bodies."""
    yield host
    for body in bodies(host):
        yield from all_nodes(body)


def place_of(host: gs.Graph, node: gs.Node) -> int:
    """Return the position of a node; `list.index` would compare nodes by all that they have."""
    return next(index for index, other in enumerate(host.nodes) if other is node)
