"""Reads an ONNX graph into the view: shapes for the example sizes, values computed from shapes, nodes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Set
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import torch

from irtool.errors import GraphError
from irtool.hosts.onnx.attributes import REDUCTIONS, Unreadable
from irtool.hosts.onnx.files.normalize import STANDARD
from irtool.hosts.onnx.files.subgraphs import bodies, captured
from irtool.hosts.onnx.fits import check_fit
from irtool.hosts.onnx.operators import ELEMENTWISE, ROWS, Row
from irtool.hosts.onnx.running.evaluate import Array, Open, check_size, element_type
from irtool.hosts.onnx.sizes.value_types import Observe, ValueTypes
from irtool.ir.graph import Node, Value

Fix = Callable[["Reader", gs.Node], None]
"""Called before a host node is read, with what is known so far; it may change the node's inputs."""
_OUTPUT_AXIS = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}
"""The axis of a weight that makes the outputs (Gemm: unless transB)."""
_DTYPES: dict[int, torch.dtype] = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: torch.float16,
    11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip


class Reader(ValueTypes):
    """One walk over the host.

    Attributes:
        nodes, inputs, outputs, params: the view.
        values: the view's value of each host tensor that flows, by name.
    """

    def __init__(self, host: gs.Graph, sizes: Mapping[str, tuple[int, ...]], scalars: frozenset[str], selects: Set[str], empty: Set[str],
                 observe: Observe, fix: Fix | None, declared: Mapping[str, Open | None]) -> None:  # fmt: skip
        super().__init__(host, empty, observe, declared)
        self.scalars, self.selects = scalars, selects
        self.nodes: list[Node] = []
        self.inputs: list[Value] = []
        self.outputs: list[Value] = []
        self.params: dict[str, Value] = {}
        self.values: dict[str, Value] = {}
        self.quantised: dict[str, gs.Node] = {}
        for tensor in host.inputs:
            self._input(tensor, sizes[tensor.name])
        for node in list(host.nodes):
            if fix is not None:
                fix(self, node)
            self.read(node)
        self._output()
        for view in self.nodes:
            for value in view.inputs:
                value.uses.append(view)

    def _input(self, tensor: gs.Tensor, shape: tuple[int, ...]) -> None:
        kind = element_type(tensor.dtype)
        check_size(shape, tensor.name)
        self.types[tensor.name] = (kind, shape)
        value = self.values[tensor.name] = Value(tensor.name, shape, _DTYPES.get(kind))
        value.producer = Node(f"input:{tensor.name}", "Input", {}, (value,), {}, tensor.name, None, "input")
        self.inputs.append(value)
        self.nodes.append(value.producer)

    def _output(self) -> None:
        self.outputs = [self.value(tensor) for tensor in self.host.outputs]
        operands = {f"output_{index}": value for index, value in enumerate(self.outputs)}
        self.nodes.append(Node("output", "Output", operands, (), {}, "output", None, "output"))

    def value(self, tensor: gs.Tensor) -> Value:
        """The view's value of a tensor; a node that makes a constant is put in for one that is computed from shapes."""
        if isinstance(tensor, gs.Constant):
            return self._param(tensor)
        if tensor.name not in self.values:
            kind, shape = self.types[tensor.name]
            value = self.values[tensor.name] = Value(tensor.name, shape, _DTYPES.get(kind))
            operands, attrs = self._counted(tensor)
            value.producer = Node(f"constant:{tensor.name}", "Constant", operands, (value,), attrs, tensor.name, None, "constant")
            self.nodes.append(value.producer)
        return self.values[tensor.name]

    def _counted(self, tensor: gs.Tensor) -> tuple[dict[str, Value], dict[str, Any]]:
        """The values whose sizes a filled tensor has: `count.1` for its axis 1, and there the (axis, multiple)."""
        counts = {f"count.{place}": count for place, count in enumerate(self.counts.filled.get(tensor.name, ())) if count is not None}
        found = {place: count for place, count in counts.items() if count.tensor in self.values}
        return {place: self.values[count.tensor] for place, count in found.items()}, {
            p: (count.axis, count.times) for p, count in found.items()
        }

    def _param(self, tensor: gs.Constant) -> Value:
        if tensor.name not in self.params:
            kind, shape = self.typed(tensor)
            dtype = _DTYPES.get(kind)
            if 0 in shape:
                raise GraphError("an empty tensor in the place of a weight", where=tensor.name, remedy="Check the model with onnx.checker.")
            if dtype is None:
                raise GraphError(
                    f"element type {kind} of {tensor.name!r}", where=tensor.name, remedy="Convert the weights to float32 first."
                )
            data = (
                torch.empty(shape, dtype=dtype, device="meta") if tensor.name in self.empty else _tensor(np.asarray(tensor.values), dtype)
            )
            self.params[tensor.name] = Value(tensor.name, shape, dtype, data=data)
        return self.params[tensor.name]

    def read(self, node: gs.Node) -> None:
        """Read one host node: compute it if it depends on shapes alone, else make it a node of the view."""
        present = [tensor for tensor in node.inputs if tensor.name]
        if node.op == "DequantizeLinear" and quantised_weight(node):
            self.quantised[node.outputs[0].name] = node
            self.types[node.outputs[0].name] = (element_type(node.inputs[1].dtype), tuple(node.inputs[0].shape))
            return
        standard = node.domain in STANDARD
        if standard and present and self.depends_on_shapes(node, present) and self.compute(node, present):
            return
        for output, typed in zip(node.outputs, self.type_of(node, present, standard), strict=True):
            if output.name:
                self.types[output.name] = typed
        row = ROWS.get(node.op) if standard else None
        if self.reads_data_sized(node):
            self._view(node, None, f"{_qualified(node)} on values whose sizes are data")
        else:
            self._view(node, self._refined(node, row))

    def _refined(self, node: gs.Node, row: Row | None) -> Row | None:
        """Two operators are read by what they are given: a product with a parameter is a linear layer, a lookup in one an embedding.

        A Gather whose index a pass owns is a channel selection.
        """
        if node.op == "Gather" and node.inputs[1].name in self.selects:
            return Row("ChannelSelect", ("input", "index"), lambda call: {})
        weight = node.inputs[1] if node.op == "MatMul" else None
        if weight is not None and (isinstance(weight, gs.Constant) or weight.name in self.quantised) and len(self.typed(weight)[1]) == 2:
            if not isinstance(node.inputs[0], gs.Constant) and len(self.typed(node.inputs[0])[1]) > 1:
                return Row("Gemm", ("input", "weight"), lambda call: {"transB": 0})
        if node.op in ("QuantizeLinear", "DequantizeLinear") and _scales_channels(node):
            axis = node.attrs.get("axis", 1) % len(self.typed(node.inputs[0])[1])
            return Row("QuantizePerChannel", ("input", "scale", "zero_point"), lambda call: {"axis": axis})
        table = node.op == "Gather" and isinstance(node.inputs[0], gs.Constant) and node.attrs.get("axis", 0) == 0
        if table and len(node.inputs[0].shape) == 2 and node.inputs[1].name in self.values:
            return Row("Embedding", ("weight", "input"), lambda call: {})
        return row

    def _view(self, node: gs.Node, row: Row | None, reason: str | None = None) -> None:
        attrs: dict[str, Any] = {}
        if row is not None:
            try:
                attrs = row.attrs(_Call(self, node))
            except Unreadable as error:
                row, reason = None, str(error)
        operands = self._operands(node, row) if row is not None else self._everything(node)
        outputs = tuple(Value(o.name, self.types[o.name][1], _DTYPES.get(self.types[o.name][0])) for o in node.outputs if o.name)
        callee = REDUCTIONS.get(node.op, node.op) if row is not None else (reason or _qualified(node))
        view = Node(node.name, row.op if row is not None else "Opaque", operands, outputs, attrs, node.name, node, callee)
        for value in outputs:
            value.producer = view
            self.values[value.name] = value
        check_fit(view)
        self.nodes.append(view)

    def _operands(self, node: gs.Node, row: Row) -> dict[str, Value]:
        found: dict[str, Value] = {}
        last = row.roles[-1]
        names = itertools.chain(row.roles[:-1], (f"{last[1:]}_{n}" for n in itertools.count()) if last[0] == "*" else (last,))
        for role, tensor in zip(names, node.inputs, strict=False):
            if role == "-" or not tensor.name or (row.op in ELEMENTWISE and self.is_scalar(node, tensor)):
                continue
            if tensor.name in self.quantised:
                found.update(self._quantised(role, self.quantised[tensor.name]))
            else:
                found[role] = self.value(tensor)
        return found

    def _quantised(self, role: str, node: gs.Node) -> dict[str, Value]:
        """A weight in integers, and the scale and zero point of each output channel where there are several."""
        parts = zip((role, f"{role}_scale", f"{role}_zero_point"), node.inputs, strict=False)
        return {
            name: self.value(tensor)
            for name, tensor in parts
            if name == role or (tensor.name and tensor.shape and tensor.name not in self.scalars)
        }

    def is_scalar(self, node: gs.Node, tensor: gs.Tensor) -> bool:
        """One number that meets any value: an argument of the operator, not a tensor with channels."""
        if tensor.name not in self.scalars and not (tensor.name in self.known and self.known[tensor.name].size == 1):
            return False
        others = [len(self.typed(other)[1]) for other in node.inputs if other.name and other.name in self.values]
        return len(self.typed(tensor)[1]) <= max(others, default=0)

    def _everything(self, node: gs.Node) -> dict[str, Value]:
        """All that flows into an operator that irtool does not know, the values that its bodies capture included."""
        tensors = [tensor for tensor in node.inputs if tensor.name]
        if bodies(node):
            tensors += captured(node, {*self.types, *self._constants()})
        parts = [part for t in tensors for part in (self.quantised[t.name].inputs if t.name in self.quantised else [t]) if part.name]
        usable = {t.name: t for t in parts if not isinstance(t, gs.Constant) or element_type(t.dtype) in _DTYPES}
        return {f"operand_{index}": self.value(tensor) for index, tensor in enumerate(usable.values())}

    def _constants(self) -> set[str]:
        return {name for name, tensor in self.host.tensors().items() if isinstance(tensor, gs.Constant)}


def quantised_weight(node: gs.Node) -> bool:
    """Whether a DequantizeLinear makes nothing but weights and biases, with one scale or one an output channel."""
    if not all(isinstance(tensor, gs.Constant) or not tensor.name for tensor in node.inputs) or not node.outputs[0].outputs:
        return False
    scales = int(np.prod(node.inputs[1].shape))
    for reader in node.outputs[0].outputs:
        places = [index for index, tensor in enumerate(reader.inputs) if tensor is node.outputs[0]]
        if reader.op not in _OUTPUT_AXIS or places not in ([1], [2]) or reader.domain not in STANDARD:
            return False
        axis = 0 if places == [2] or reader.attrs.get("transB") else _OUTPUT_AXIS[reader.op]
        if scales > 1 and (len(node.inputs[1].shape) != 1 or node.attrs.get("axis", 1) % len(node.inputs[0].shape) != axis):
            return False
        if scales > 1 and reader.op == "ConvTranspose" and reader.attrs.get("group", 1) > 1 and places == [1]:
            return False
    return True


def _scales_channels(node: gs.Node) -> bool:
    """Whether a quantisation has stored scales, one for each entry of an axis, and zero points of a type that can be read."""
    parts = [tensor for tensor in node.inputs[1:] if tensor.name]
    stored = all(isinstance(tensor, gs.Constant) and element_type(tensor.dtype) in _DTYPES for tensor in parts)
    return stored and len(parts[0].shape) == 1 and parts[0].shape[0] > 1


class _Call:
    """A host node as the operator table sees it."""

    def __init__(self, reader: Reader, node: gs.Node) -> None:
        self._reader, self._node, self.opset, self.op = reader, node, reader.opset, str(node.op)

    def attr(self, name: str, default: Any = None) -> Any:
        return self._node.attrs.get(name, default)

    def given(self, index: int) -> bool:
        return len(self._node.inputs) > index and bool(self._node.inputs[index].name)

    def known(self, index: int) -> Array | None:
        return self._reader.constant(self._node.inputs[index]) if self.given(index) else None

    def shape(self, index: int) -> tuple[int, ...]:
        return self._reader.typed(self._node.inputs[index])[1]

    def result(self, index: int = 0) -> tuple[int, ...]:
        return self._reader.typed(self._node.outputs[index])[1]

    def results(self) -> int:
        return len(self._node.outputs)

    def number(self, index: int) -> float | None:
        if not self.given(index) or not self._reader.is_scalar(self._node, self._node.inputs[index]):
            return None
        value = self.known(index)
        return None if value is None else float(value.reshape(-1)[0])

    def is_read(self, index: int) -> bool:
        tensor = self._node.outputs[index]
        return bool(tensor.outputs) or any(tensor is output for output in self._reader.host.outputs)


def _tensor(array: Array, dtype: torch.dtype) -> torch.Tensor:
    """Return an array's memory as a torch tensor; nothing writes to it."""
    if not array.flags.writeable or not array.flags.c_contiguous or array.dtype.byteorder == ">":
        array = np.array(array)
    return torch.from_numpy(array.view(np.int16)).view(dtype) if dtype == torch.bfloat16 else torch.from_numpy(array)


def _qualified(node: gs.Node) -> str:
    return str(node.op) if node.domain in STANDARD else f"{node.domain}.{node.op}"
