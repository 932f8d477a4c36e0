"""Sequences that hold a known number of tensors are the movements that they stand for: Split, Concat, and nothing at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import ModelProto

from irtool.hosts.onnx.edges import cleanup
from irtool.hosts.onnx.files.limits import MOST_INPUTS, MOST_NODES

OPERATORS = frozenset(
    "SplitToSequence SequenceConstruct SequenceEmpty SequenceInsert SequenceErase SequenceAt SequenceLength ConcatFromSequence".split()
)
MAKING = frozenset("SplitToSequence SequenceConstruct SequenceEmpty SequenceInsert SequenceErase SequenceMap".split())
"""Operators that give a sequence."""
Parts = list[gs.Tensor]


def axis_sizes(model: ModelProto) -> dict[str, list[int | None]]:
    """The sizes of what is split into sequences, as far as they are the same for every input; nothing if nothing is."""
    split = {node.input[0] for node in model.graph.node if node.op_type == "SplitToSequence"}
    if not split:
        return {}
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except Exception:  # too large for it, or malformed in a way that only it minds: then sizes are unknown
        return {}
    values = (value for value in (*graph.value_info, *graph.input) if value.name in split)
    return {value.name: [dim.dim_value or None for dim in value.type.tensor_type.shape.dim] for value in values}


def unpack_sequences(host: gs.Graph, sizes: Mapping[str, list[int | None]]) -> int:
    """Replace sequence operators in place, as far as it is known how many tensors they hold and which is picked.

    Args:
        host: with its constants settled.
        sizes: see `axis_sizes`.

    Returns:
        How many operators that read a sequence were replaced.
    """
    if not any(node.op in OPERATORS for node in host.nodes):
        return 0
    work = _Unpacking(host, sizes)
    for node in list(host.nodes):
        if node.op in OPERATORS and node.domain in ("", "ai.onnx", None):
            _HANDLERS[node.op](work, node)
    work.place()
    cleanup(host)  # what was split and is picked from by the data stays one operator
    return work.replaced


class _Unpacking:
    def __init__(self, host: gs.Graph, sizes: Mapping[str, list[int | None]]) -> None:
        self.host, self.sizes = host, sizes
        self.parts: dict[str, Parts] = {}
        self.replaced = 0
        self.allowed = MOST_NODES
        self._outputs = {id(output) for output in host.outputs}
        self._before: dict[int, list[gs.Node]] = {}
        self._made, self._taken = 0, {*host.tensors(), *(node.name for node in host.nodes)}

    def spend(self, tensors: int) -> bool:
        """Whether so many more tensors may be written: a sequence of a few nodes can stand for millions."""
        if tensors > min(self.allowed, MOST_INPUTS):
            return False
        self.allowed -= tensors
        return True

    def place(self) -> None:
        """Put the new operators where they belong."""
        self.host.nodes[:] = [new for node in self.host.nodes for new in (*self._before.get(id(node), ()), node)]

    def _name(self, before: gs.Node, what: str) -> str:
        name = ""
        while not name or name in self._taken:
            self._made += 1
            name = f"{before.name}.{what}_{self._made}"
        return name

    def _put(self, before: gs.Node, new: gs.Node) -> None:
        self._before.setdefault(id(before), []).append(new)

    def insert(self, before: gs.Node, op: str, inputs: Parts, count: int = 1, **attrs: int) -> Parts:
        """A new operator in front of another one."""
        stem = self._name(before, op)
        outputs = [gs.Variable(f"{stem}.{index}") for index in range(count)]
        self._put(before, gs.Node(op, stem, attrs, list(inputs), outputs))
        return list(outputs)

    def with_axes(self, before: gs.Node, op: str, tensor: gs.Tensor, axis: int) -> gs.Tensor:
        """Squeeze or Unsqueeze at one axis, as this operator set writes it."""
        if self.host.opset < 13:
            return self.insert(before, op, [tensor], axes=[axis])[0]  # type: ignore[arg-type]
        axes = gs.Constant(self._name(before, "axes"), np.array([axis], np.int64))
        return self.insert(before, op, [tensor, axes])[0]

    def split(self, before: gs.Node, tensor: gs.Tensor, pieces: list[int], axis: int) -> Parts:
        if len(pieces) == 1:
            return [tensor]
        if self.host.opset < 13:
            return self.insert(before, "Split", [tensor], len(pieces), axis=axis, split=pieces)  # type: ignore[arg-type]
        sizes = gs.Constant(self._name(before, "pieces"), np.array(pieces, np.int64))
        return self.insert(before, "Split", [tensor, sizes], len(pieces), axis=axis)

    def replace(self, node: gs.Node, new: gs.Tensor) -> bool:
        """Readers of the node's result read `new`; an output of the graph keeps its name."""
        old = node.outputs[0]
        node.outputs.clear()
        self.replaced += 1
        if id(old) in self._outputs:
            self._put(node, gs.Node("Identity", f"{node.name}.out", {}, [new], [old]))
            return True
        for reader in list(old.outputs):
            for index, tensor in enumerate(reader.inputs):
                if tensor is old:
                    reader.inputs[index] = new
        return True


def _whole(tensor: gs.Tensor | None) -> int | None:
    """The number that a constant holds."""
    if isinstance(tensor, gs.Constant) and np.asarray(tensor.values).size == 1:
        return int(np.asarray(tensor.values).reshape(-1)[0])
    return None


def _given(node: gs.Node, index: int) -> gs.Tensor | None:
    return node.inputs[index] if len(node.inputs) > index and node.inputs[index].name else None


def _split_to_sequence(work: _Unpacking, node: gs.Node) -> bool:
    axis, split = node.attrs.get("axis", 0), _given(node, 1)
    known = work.sizes.get(node.inputs[0].name)
    size = known[axis] if known is not None and -len(known) <= axis < len(known) else None
    if isinstance(split, gs.Constant) and np.asarray(split.values).ndim == 1:
        pieces = np.asarray(split.values).tolist() if np.asarray(split.values).size <= MOST_INPUTS else []
    elif size is not None and (split is None or (_whole(split) or 0) > 0):
        each = 1 if split is None else _whole(split) or 1
        pieces = [min(each, size - start) for start in range(0, min(size, each * (MOST_INPUTS + 1)), each)]
    else:
        return False
    if not pieces or not work.spend(len(pieces)):
        return False
    parts = work.split(node, node.inputs[0], pieces, axis)
    if split is None and not node.attrs.get("keepdims", 1):
        parts = [work.with_axes(node, "Squeeze", part, axis) for part in parts]
    return _keep(work, node, parts)


def _keep(work: _Unpacking, node: gs.Node, parts: Parts) -> bool:
    """Note what a sequence holds, if it is of a length that any model has."""
    if len(parts) > MOST_INPUTS:
        return False
    work.parts[node.outputs[0].name] = parts
    return True


def _construct(work: _Unpacking, node: gs.Node) -> bool:
    return _keep(work, node, list(node.inputs))


def _place(work: _Unpacking, node: gs.Node, index: int, parts: Parts) -> int | None:
    """Return the position in a sequence that an input of a node states, the end if it has none; None if that is computed from data."""
    tensor = _given(node, index)
    found = len(parts) if tensor is None else _whole(tensor)
    return found if found is None or found >= 0 else found + len(parts)


def _insert(work: _Unpacking, node: gs.Node) -> bool:
    parts = work.parts.get(node.inputs[0].name)
    place = None if parts is None else _place(work, node, 2, parts)
    if parts is None or place is None or not 0 <= place <= len(parts):
        return False
    return _keep(work, node, [*parts[:place], node.inputs[1], *parts[place:]])


def _erase(work: _Unpacking, node: gs.Node) -> bool:
    parts = work.parts.get(node.inputs[0].name)
    if parts is None:
        return False
    place = len(parts) - 1 if _given(node, 1) is None else _place(work, node, 1, parts)
    if place is None or not 0 <= place < len(parts):
        return False
    return _keep(work, node, [*parts[:place], *parts[place + 1 :]])


def _at(work: _Unpacking, node: gs.Node) -> bool:
    parts = work.parts.get(node.inputs[0].name)
    place = None if parts is None else _place(work, node, 1, parts)
    if parts is None or place is None or not 0 <= place < len(parts):
        return False
    return work.replace(node, parts[place])


def _length(work: _Unpacking, node: gs.Node) -> bool:
    parts = work.parts.get(node.inputs[0].name)
    if parts is None:
        return False
    return work.replace(node, gs.Constant(f"{node.name}.length", np.array(len(parts), np.int64)))


def _concat(work: _Unpacking, node: gs.Node) -> bool:
    parts, axis = work.parts.get(node.inputs[0].name), node.attrs["axis"]
    if not parts or not work.spend(len(parts)):
        return False
    if node.attrs.get("new_axis", 0):
        parts = [work.with_axes(node, "Unsqueeze", part, axis) for part in parts]
    return work.replace(node, work.insert(node, "Concat", parts, axis=axis)[0])


_HANDLERS: Mapping[str, Callable[[_Unpacking, gs.Node], bool]] = {
    "SplitToSequence": _split_to_sequence, "SequenceConstruct": _construct, "SequenceEmpty": _construct, "SequenceInsert": _insert,
    "SequenceErase": _erase, "SequenceAt": _at, "SequenceLength": _length, "ConcatFromSequence": _concat,
}  # fmt: skip
