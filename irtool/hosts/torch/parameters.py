"""The parameters of a traced program: where they hang, and new ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from irtool.hosts.torch.modules import modules_by_path
from irtool.hosts.torch.reader import Reader
from irtool.ir.graph import Graph, Value

Slot = tuple[dict[str, Any], str]
"""Place of a tensor: a module's parameters, buffers or attributes, and the name there."""


class FxParameters(Graph):
    """The parameters of `FxGraph`.

    Attributes:
        module: the program.
    """

    module: fx.GraphModule
    params: dict[str, Value]
    _reader: Reader
    _names: dict[int, str]
    _places: dict[tuple[int, str], tuple[dict[str, Any], int]]

    def _begin(self) -> None:
        """Note that nothing is edited yet."""
        self._held: dict[str, list[Slot]] = {}
        self._pending: dict[Value, tuple[str, torch.Tensor]] = {}
        self._former: list[torch.Tensor] = []
        """Tensors that gave way where others may still hang: names go by identity, which a tensor that is gone leaves to others."""

    def _add_param(self, name: str, data: torch.Tensor, trainable: bool) -> Value:
        """Make the value of a new parameter; it is hung into the module when something fetches it."""
        name = self._free(name.replace(".", "_"))
        tensor = nn.Parameter(data) if trainable and data.is_floating_point() else data
        value = Value(name, tuple(data.shape), data.dtype, data=tensor.detach())
        self._pending[value] = name, tensor
        return value

    def _free(self, name: str) -> str:
        """The name, with underscores until neither the module nor a parameter that is still to be hung has it."""
        taken = {pending for pending, _ in self._pending.values()}
        while hasattr(self.module, name) or name in taken:
            name += "_"
        return name

    def _hang(self, value: Value) -> str:
        """The path of a parameter in the module, which holds it from now on."""
        if value in self._pending:
            name, tensor = self._pending.pop(value)
            if isinstance(tensor, nn.Parameter):
                self.module.register_parameter(name, tensor)
            else:
                self.module.register_buffer(name, tensor)
            self._know(value, name, tensor)
        return value.name

    def _know(self, value: Value, name: str, tensor: torch.Tensor) -> None:
        """Note where a tensor of the program hangs."""
        value.name = name
        self._names[id(tensor)] = name
        self.params[name] = value
        self._reader.known[id(tensor)] = value
        self._held.clear()

    def _move(self, tensor: torch.Tensor) -> None:
        """Name a parameter after the next module that holds it, where the first holds another now."""
        self._former.append(tensor)
        value = self._reader.known.get(id(tensor))
        paths = (
            (path, key) for path, owner in modules_by_path(self.module).items() for key, held in owner._parameters.items() if held is tensor
        )
        found = next(paths, None)
        if value is not None and found is not None:
            self._know(value, ".".join(filter(None, found)), tensor)

    def set_param(self, name: str, data: torch.Tensor) -> None:
        """Replace a parameter's or buffer's tensor everywhere it is used; the shape stays that of the view.

        Raises:
            GraphError: another shape.
        """
        value = self.fitting_param(name, data)
        old = self._holders()[name][0]
        held = old[0][old[1]]
        self._put(name, nn.Parameter(data, requires_grad=held.requires_grad) if isinstance(held, nn.Parameter) else data)
        value.data = data.detach()

    def _put(self, name: str, tensor: torch.Tensor) -> None:
        """Hang another tensor wherever a parameter hangs. Names go by identity, which a tensor that is gone leaves to others."""
        value = self.params[name]
        for slot, key in self._holders()[name]:
            for known in (self._names, self._reader.known):
                known.pop(id(slot[key]), None)
            slot[key] = tensor
            self._places[id(slot), key] = (slot, tensor.data_ptr())
        self._names[id(tensor)] = name
        self._reader.known[id(tensor)] = value

    def _holders(self) -> dict[str, list[Slot]]:
        """Return the places of each parameter in the module tree: a shared one has several."""
        if not self._held:
            fetched = {str(node.target).rpartition(".")[0] for node in self.module.graph.nodes if node.op == "get_attr"}
            for path, owner in modules_by_path(self.module).items():
                # A constant that is neither parameter nor buffer is known to the view only where the program fetches it.
                slots: list[dict[str, Any]] = [owner._parameters, owner._buffers, owner.__dict__ if path in fetched else {}]
                for slot in slots:
                    for key, held in slot.items():
                        if isinstance(held, torch.Tensor):
                            name = self._names.get(id(held)) or (f"{path}.{key}" if path else key)
                            self._held.setdefault(name, []).append((slot, key))
        return self._held
