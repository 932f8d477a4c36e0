"""The tensors of an ONNX program as the view's values name them, and new constants."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import torch
from onnx import helper

from irtool.hosts.onnx.reader import Reader
from irtool.hosts.onnx.running.evaluate import Array
from irtool.ir.graph import Graph, Value


class OnnxParameters(Graph):
    """The parameters of `OnnxGraph`.

    Attributes:
        host: the program.
        empty: the types of parameters whose data is still to come, by name.
    """

    host: gs.Graph
    empty: set[str]
    params: dict[str, Value]
    _reader: Reader

    def _begin(self) -> None:
        """Note that nothing is edited yet."""
        self._fresh: set[int] = set()
        self._held: dict[str, gs.Constant] = {}
        self._taken: set[str] = set()

    def _tensor(self, value: Value) -> gs.Tensor:
        """The host's tensor of a value."""
        if value.is_param:
            return self._constants()[value.name]
        host = value.producer.host if value.producer is not None else None
        if host is not None:
            assert value.producer is not None
            place = next(index for index, output in enumerate(value.producer.outputs) if output is value)
            return [tensor for tensor in host.outputs if tensor.name][place]
        found = next((tensor for tensor in self.host.inputs if tensor.name == value.name), None)
        return found if found is not None else self.host.tensors()[value.name]

    def _constants(self) -> dict[str, gs.Constant]:
        if not self._held:
            self._held.update({name: tensor for name, tensor in self.host.tensors().items() if isinstance(tensor, gs.Constant)})
        return self._held

    def free_name(self, name: str) -> str:
        """The name, with underscores until no tensor has it."""
        if not self._taken:
            self._taken.update(self.host.tensors())
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def _add_param(self, name: str, data: torch.Tensor, trainable: bool) -> Value:
        """Make the value of a new parameter."""
        constant = gs.Constant(self.free_name(name), array_of(data))
        self._constants()[constant.name] = constant
        self._fresh.add(id(constant))
        return self._reader.value(constant)

    def set_param(self, name: str, data: torch.Tensor) -> None:
        """Replace a parameter everywhere it is used; the shape stays that of the view.

        Raises:
            GraphError: another shape.
        """
        value = self.fitting_param(name, data)
        self._constants()[name].values = array_of(data)
        self.empty.discard(name)
        value.data = data.detach()


def scalars_of(host: gs.Graph) -> frozenset[str]:
    """The constants of one entry."""
    return frozenset(name for name, t in host.tensors().items() if isinstance(t, gs.Constant) and int(np.prod(t.shape)) == 1)


def array_of(data: torch.Tensor) -> Array:
    """A tensor as ONNX stores it."""
    data = data.detach().cpu().contiguous()
    if data.dtype == torch.bfloat16:
        return data.view(torch.int16).numpy().view(helper.tensor_dtype_to_np_dtype(16))
    return data.numpy()
