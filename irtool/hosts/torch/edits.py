"""The edit verbs, written through to a `torch.fx` program."""

from __future__ import annotations

import operator
from abc import abstractmethod
from collections.abc import Sequence, Set
from typing import Any

import torch
from torch import fx, nn

from irtool.errors import GraphError
from irtool.hosts.torch.channel_select import ChannelSelect
from irtool.hosts.torch.modules import submodule
from irtool.hosts.torch.parameters import FxParameters
from irtool.hosts.torch.purity import is_pure
from irtool.hosts.torch.reader import Fix
from irtool.hosts.torch.sizes.resize import sync_attributes
from irtool.hosts.torch.written import call_of, write_argument, write_field
from irtool.ir.graph import Node, Value


class FxEdits(FxParameters):
    """The edit verbs of `FxGraph`."""

    origin: nn.Module | None
    _values: dict[fx.Node, Any]

    def _begin(self) -> None:
        """Note that nothing is edited yet."""
        super()._begin()
        self._read_at: dict[Value, list[fx.Node]] | None = None
        self._loose: list[fx.Node] = []

    @abstractmethod
    def refresh(self, fix: Fix | None = None) -> None:
        """Read the host again after an edit."""

    def commit(self) -> None:
        """Drop what edits left unread, and read the program again; see `Graph.commit`."""
        self._drop_loose()
        try:
            self.module.graph.lint()
        except RuntimeError as error:
            text = str(error).splitlines()[0]
            raise GraphError(f"the edited program cannot run: {text}", remedy="Insert a node behind what it reads.") from error
        self.module.delete_all_unused_submodules()
        self.module.recompile()
        self.origin = None
        self.refresh()

    def _hosts_of(self, value: Value) -> list[fx.Node]:
        """The host nodes that stand for a value, in order: the one that makes or fetches it, or takes it out of a tuple."""
        if self._read_at is None:
            self._read_at = {}
            for host, held in self._values.items():
                if isinstance(held, Value):
                    self._read_at.setdefault(held, []).append(host)
        return [host for host in self._read_at.get(value, ()) if not host._erased]

    def _note(self, value: Value, host: fx.Node) -> None:
        self._values[host] = value
        if self._read_at is not None:
            self._read_at.setdefault(value, []).append(host)

    def _fetch(self, value: Value, point: fx.Node) -> fx.Node:
        """A host node that stands for a value before another one."""
        found = next((host for host in self._hosts_of(value) if host < point), None)
        if found is not None:
            return found
        if value.is_param:
            with self.module.graph.inserting_before(point):
                found = self.module.graph.get_attr(self._hang(value))
        elif value.producer is not None and isinstance(nest := self._values.get(value.producer.host), tuple | list):
            place = next((index for index, held in enumerate(nest) if held is value), None)
            if place is not None:
                with self.module.graph.inserting_before(value.producer.host.next):
                    found = self.module.graph.call_function(operator.getitem, (value.producer.host, place))
        if found is None or not found < point:
            raise GraphError(f"{value.name} is not made before {point.name}", remedy="Insert a node behind what it reads.")
        self._note(value, found)
        return found

    def _insert(self, op: str, operands: Sequence[Value], attrs: dict[str, Any], anchor: Node, after: bool, name: str) -> Node:
        """Write an operator into the program, and read it."""
        point = self._point(anchor, after)
        made: fx.Node | None = None
        try:
            if op == "ChannelSelect":
                made = self._select(operands, point, name)
            else:
                target, args = call_of(op, [self._fetch(value, point) for value in operands], operands, attrs)
                with self.module.graph.inserting_before(point):
                    made = self.module.graph.create_node("call_function", target, args, {}, name or None)
            node = self._reader.read_more(made)
        except GraphError:
            if made is not None:
                self.module.graph.erase_node(made)
            raise
        if len(node.outputs) == 1:
            self._note(node.output, made)
        return node

    def _point(self, anchor: Node, after: bool) -> fx.Node:
        """The host node before which a new one stands, in front of a node or behind it; behind an input means behind all of them."""
        host: fx.Node = anchor.host
        if host.op == "placeholder":
            host = [node for node in self.module.graph.nodes if node.op == "placeholder"][-1]
            after = True
        return host.next if after else host

    def _select(self, operands: Sequence[Value], point: fx.Node, name: str) -> fx.Node:
        """A channel selection is a module, which owns its index."""
        source, index = operands
        if index not in self._pending:
            raise GraphError("a channel selection owns its index", where=name, remedy="Make one with add_param.")
        read = self._fetch(source, point)
        name, (_, held) = self._free(name or "select"), self._pending.pop(index)
        module = ChannelSelect(held)
        self.module.add_submodule(name, module)
        self._reader.modules[name] = module
        self._know(index, f"{name}.index", held)
        with self.module.graph.inserting_before(point):
            return self.module.graph.call_module(name, (read,))

    def _redirect(self, value: Value, by: Value, readers: Sequence[Node] | None) -> None:
        """Exchange a value in the program, for all readers or for some."""
        if value.is_param and by in self._pending and self._held_by_modules(value):
            self._exchange(value, by, readers)
            return
        hosts = self._hosts_of(value)
        wanted = {use.host for use in value.uses} if readers is None else {node.host for node in readers}
        maker = by.producer.host if by.producer is not None else None
        reached = {user for host in hosts for user in host.users}
        left = next((host for host in wanted - reached if host is not maker), None)
        if left is not None:
            raise GraphError(f"{left.name} does not read {value.name} by itself", remedy="Exchange what it reads as a whole.")
        pairs = [
            (host, user)
            for host in hosts
            for user in host.users
            if user is not maker and (readers is None or user in wanted) and self._values.get(user) is not value
        ]
        targets = [self._fetch(by, user) for _, user in pairs]  # all of them before any is exchanged: an edit is done or refused
        for (host, user), target in zip(pairs, targets, strict=True):
            user.replace_input_with(host, target)
        self._loose += hosts

    def _held_by_modules(self, value: Value) -> bool:
        return any(use.host.op == "call_module" for use in value.uses)

    def _exchange(self, value: Value, by: Value, readers: Sequence[Node] | None) -> None:
        """Put a new parameter in the place of one that modules hold, under its name: whatever holds it changes over."""
        if readers is not None and set(value.uses) - set(readers):
            raise GraphError("modules that share a parameter change it together", where=value.name, remedy="Leave readers out.")
        name, (_, tensor) = value.name, self._pending.pop(by)
        old = self._holders()[name]
        kept = isinstance(old[0][0][old[0][1]], nn.Parameter)
        tensor = tensor if kept or not isinstance(tensor, nn.Parameter) else tensor.detach()
        owners = [use.host.target for use in value.uses if use.host.op == "call_module"]
        self._put(name, nn.Parameter(tensor) if kept and tensor.is_floating_point() else tensor)
        slot, key = old[0]
        self._know(by, name, slot[key])
        by.data = slot[key].detach()
        for path in dict.fromkeys(owners):
            sync_attributes(submodule(self.module, str(path)))
        for host in self._hosts_of(value):
            self._note(by, host)

    def _erase(self, node: Node) -> None:
        """Take a node out of the program, which in the view nobody reads."""
        host: fx.Node = node.host
        for user in list(host.users):
            self._drop(user)
        if host.users:
            reader = next(iter(host.users))
            raise GraphError(f"{reader.name} reads it", where=node.location, remedy="Call replace_uses before erase.")
        self._loose += host.all_input_nodes
        self.module.graph.erase_node(host)

    def _drop(self, host: fx.Node) -> None:
        """Take out a host node if it, and what reads it, does nothing that anybody reads."""
        for user in list(host.users):
            self._drop(user)
        if not host.users and is_pure(self.module, host):
            self._loose += host.all_input_nodes
            self.module.graph.erase_node(host)

    def _drop_loose(self) -> None:
        """Take out what lost its readers by edits, and what only that had read."""
        while self._loose:
            host = self._loose.pop()
            if not host._erased and not host.users and is_pure(self.module, host):
                self._loose += host.all_input_nodes
                self.module.graph.erase_node(host)

    def drop_dead(self) -> list[str]:
        """Take out every operator that changes nothing and that nobody reads; their names."""
        dead = []
        for host in reversed(list(self.module.graph.nodes)):
            if not host.users and is_pure(self.module, host):
                self.module.graph.erase_node(host)
                if host in self._values and host.op != "get_attr":
                    dead.append(host.name)
        return dead[::-1]

    def set_attr(self, node: Node, name: str, value: Any) -> None:
        """Change an attribute of a node in the program; see `Graph.set_attr`."""
        host: fx.Node = node.host
        if host.op == "call_module":
            calls = [other.name for other in self.module.graph.nodes if other.op == "call_module" and other.target == host.target]
            if len(calls) > 1:
                remedy = "Change the model: give each call a module of its own."
                raise GraphError(f"{host.target} is called by {', '.join(calls)}", where=node.location, remedy=remedy)
        try:
            owner = submodule(self.module, str(host.target)) if host.op == "call_module" else None
            done = write_argument(host, name, value) if owner is None else write_field(owner, name, value)
        except ValueError as error:
            raise GraphError(f"{name} cannot be written: {error}", where=node.location, remedy="Give another value.") from error
        if not done:
            raise GraphError(f"{node.callee} has no attribute {name!r} here", where=node.location, remedy="Insert another operator.")

    def _read_unseen(self, value: Value) -> bool:
        """Whether the program reads a value in an operator that the view does not show."""
        shown = {use.host for use in value.uses}
        users = {user for host in self._hosts_of(value) for user in host.users if self._values.get(user) is not value}
        return bool(users - shown)

    def is_constant(self, node: Node, constants: Set[Value]) -> bool:
        """Whether all that the node reads are parameters or `constants`, so that its outputs never change in eval mode."""
        values = [self._values.get(used) for used in node.host.all_input_nodes]
        known = all(isinstance(value, Value) and (value.is_param or value in constants) for value in values)
        return bool(values) and known and is_pure(self.module, node.host)

    # Biases: where one can stand, the host alone knows.

    def accepts_bias(self, node: Node) -> bool:
        """Whether the node is a module or a function: methods take none."""
        return node.host.op in ("call_module", "call_function")

    def takes_own_bias(self, node: Node) -> bool:
        """Whether the node is a module whose bias no function reads, or a function without one."""
        bias = node.get("bias")
        if node.host.op == "call_module":
            return bias is None or all(self.holder(use) is not None for use in bias.uses)
        return node.host.op == "call_function" and bias is None and node.op != "MatMul"

    def give_bias(self, node: Node, data: torch.Tensor, name: str) -> None:
        """Give a convolution or linear layer that has none a bias, called `name` if its host names none."""
        host: fx.Node = node.host
        calls, bias = [node], self._add_param(name, data, True)
        if host.op == "call_module":
            tensor = nn.Parameter(data)
            _, owner = self._pending.pop(bias), submodule(self.module, str(host.target))
            former, owner.bias = owner._parameters.get("bias"), tensor
            if former is not None:
                self._move(former)
            bias.data = tensor.detach()
            self._places[id(owner._parameters), "bias"] = (owner._parameters, tensor.data_ptr())
            self._know(bias, f"{host.target}.bias", tensor)
            weight = node.get("weight")
            shared = weight.uses if weight is not None else [node]
            calls = list(dict.fromkeys(use for use in shared if self.holder(use) is owner))
        else:
            read = self._fetch(bias, host)
            if len(host.args) > 2:
                host.args = (*host.args[:2], read, *host.args[3:])
            else:  # by name: the weight before it may be given so
                host.kwargs = {**host.kwargs, "bias": read}
        for call in calls:
            old = call.get("bias")
            if old is not None:
                old.uses[:] = [use for use in old.uses if use is not call]
            call.operands["bias"] = bias
            bias.uses.append(call)
