"""Values that a caller gives for inputs: they become constants, and what they decide is decided."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import ModelProto, helper, numpy_helper

from irtool.errors import OptionError
from irtool.hosts.onnx.edges import cleanup
from irtool.hosts.onnx.files.subgraphs import bodies
from irtool.hosts.onnx.running.evaluate import check_size

Given = Mapping[str, float | bool | Sequence[float]]
"""A number, or several, for an input by its name."""


def set_inputs(model: ModelProto, values: Given) -> list[str]:
    """Make initialisers, in place, of inputs whose values are given. Returns a line for each.

    Raises:
        OptionError: no such input, or numbers that do not fit it.
    """
    held = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name: value for value in model.graph.input if value.name not in held}
    notes = []
    for name, numbers in values.items():
        if name not in inputs:
            raise OptionError(f"no input is called {name!r}", where="--set", remedy=f"The inputs are {', '.join(inputs)}.")
        model.graph.initializer.append(numpy_helper.from_array(_array(inputs[name], numbers), name))
        model.graph.input.remove(inputs[name])
        notes.append(f"the input {name!r} is {numbers} for good: it is no input any more")
    if values and not [name for name in inputs if name not in values]:
        raise OptionError("every input has a value", where="--set", remedy="Leave the input free that the model is made for.")
    return notes


def _array(value: onnx.ValueInfoProto, numbers: float | bool | Sequence[float]) -> np.ndarray:
    kind = value.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
    shape = tuple(dim.dim_value or None for dim in kind.shape.dim)
    exact = np.asarray(numbers)
    try:
        array = exact.astype(dtype)
    except (ValueError, TypeError) as error:
        raise OptionError(f"{numbers!r} for an input of {dtype}", where=f"--set {value.name}", remedy="Give numbers.") from error
    if np.issubdtype(dtype, np.integer) and not np.array_equal(array, exact):
        raise OptionError(f"{numbers!r} for an input of {dtype}", where=f"--set {value.name}", remedy="Give whole numbers of its range.")
    if array.ndim and array.size != 1:
        wanted = tuple(array.size if size is None else size for size in shape)
        if array.size != math.prod(wanted):
            raise OptionError(
                f"{array.size} numbers for sizes {shape}", where=f"--set {value.name}", remedy="Give one, or as many as it holds."
            )
        return array.reshape(wanted)
    filled = tuple(1 if size is None else size for size in shape)
    check_size(filled, value.name)
    return np.full(filled, array.reshape(-1)[0] if array.ndim else array, dtype)


def take_branches(host: gs.Graph) -> int:
    """Put the branch that a constant chooses in the place of each If, in place. Returns how many there were."""
    if not any(_is_decided(node) for node in host.nodes):
        return 0
    found, outer, nodes = 0, host.tensors(), list[gs.Node]()
    waiting = list(reversed(host.nodes))
    while waiting:
        node = waiting.pop()
        if _is_decided(node):
            waiting += reversed(_unfolded(node, outer))  # an If in the branch may be decided, too
            found += 1
        else:
            nodes.append(node)
    host.nodes[:] = nodes
    cleanup(host)
    return found


def _is_decided(node: gs.Node) -> bool:
    return (
        node.op == "If" and bool(node.outputs) and isinstance(node.inputs[0], gs.Constant) and np.asarray(node.inputs[0].values).size == 1
    )


def _unfolded(node: gs.Node, outer: dict[str, gs.Tensor]) -> list[gs.Node]:
    """The nodes of the branch that is taken, renamed after the node; `outer` holds the tensors around it, and gets theirs."""
    branch: gs.Graph = node.attrs["then_branch" if bool(np.asarray(node.inputs[0].values).reshape(-1)[0]) else "else_branch"]
    made = {id(tensor) for inner in branch.nodes for tensor in inner.outputs}
    for inner in branch.nodes:
        inner.name = f"{node.name}.{inner.name}"
        for tensor in inner.outputs:
            if tensor.name:
                tensor.name = f"{node.name}.{tensor.name}"
        for index, tensor in enumerate(list(inner.inputs)):
            if tensor.name in outer and id(tensor) not in made and tensor is not outer[tensor.name]:
                inner.inputs[index] = outer[tensor.name]  # graphsurgeon takes every constant for one of the body's own
    results = [outer.get(tensor.name, tensor) if id(tensor) not in made else tensor for tensor in branch.outputs]
    outputs, moved = list(node.outputs), list(branch.nodes)
    node.outputs.clear()
    branch.nodes.clear()
    outer |= {tensor.name: tensor for inner in moved for tensor in (*inner.inputs, *inner.outputs) if tensor.name}
    copies = [
        gs.Node("Identity", f"{node.name}.out_{index}", {}, [result], [output])
        for index, (result, output) in enumerate(zip(results, outputs, strict=True))
        if output.name
    ]
    return [*moved, *copies]


def dense_initialisers(model: ModelProto) -> None:
    """Write sparse initialisers out in place, each in its own type: readers of the graph take float32 for granted."""
    for sparse in model.graph.sparse_initializer:
        name = sparse.values.name
        check_size(tuple(sparse.dims), name)
        values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        dense = np.zeros(tuple(sparse.dims), values.dtype)
        if indices.ndim == 1:
            dense.reshape(-1)[indices] = values
        else:
            dense[tuple(indices.T)] = values
        model.graph.initializer.append(numpy_helper.from_array(dense, name))
    model.graph.ClearField("sparse_initializer")


def drop_empty_operands(host: gs.Graph) -> None:
    """Take constants without entries out of Concat, in place: exporters begin lists with them."""
    for node in host.nodes:
        if node.op == "Concat" and len(node.inputs) > 1:
            full = [t for t in node.inputs if not (isinstance(t, gs.Constant) and 0 in t.shape)]
            if full and len(full) < len(node.inputs):
                node.inputs = full
        for body in bodies(node):
            drop_empty_operands(body)
