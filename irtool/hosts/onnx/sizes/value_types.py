"""Types of an ONNX program's values for the example sizes: inferred, stated, or seen in a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set

import numpy as np
import onnx_graphsurgeon as gs

from irtool.errors import GraphError
from irtool.hosts.onnx.files.sequences import OPERATORS as SEQUENCES
from irtool.hosts.onnx.files.subgraphs import bodies
from irtool.hosts.onnx.running.evaluate import (
    SIZES,
    Array,
    Budget,
    Open,
    Seen,
    Typed,
    check_size,
    closed,
    element_type,
    infer_open,
    proto_of,
    run_constant,
)
from irtool.hosts.onnx.sizes.counts import Counts
from irtool.hosts.onnx.sizes.data_sizes import PLACEHOLDER, makes_data_sizes, reads

Observe = Callable[[list[str]], Mapping[str, Seen]]
"""Runs the whole model on the example sizes and tells the types of the values asked for, by name."""
FROM_SHAPE = frozenset({"Shape", "Size"})
"""Operators that give the sizes of a value."""
_MAY_BE_EMPTY = frozenset(
    {"Slice", "Split", "Gather", "Concat", "Expand", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Cast"}
)
"""Operators that may give nothing, such as a list's empty beginning. Of others that means an example that is too small."""


class ValueTypes:
    """The types of values, and the values of what depends on sizes alone.

    Attributes:
        types: of every value that flows, by name.
        known: values computed from shapes (and constants they are computed with), by name.
        data_sized: values some of whose sizes are data (or that nothing tells), by name: the type with None for these.

    Args:
        host: the program.
        empty: parameters whose data is still to come, by name.
        observe: runs the model, where nothing else tells a type.
        declared: results of operators that onnxruntime does not run, with what the file says of them; None if it says nothing.
    """

    def __init__(self, host: gs.Graph, empty: Set[str], observe: Observe, declared: Mapping[str, Open | None]) -> None:
        self.host, self.empty, self._observe = host, empty, observe
        self.opset = int(host.opset)
        self.known: dict[str, Array] = {}
        self.types: dict[str, Typed] = {}
        self.data_sized: dict[str, Open] = {}
        self._declared, self._unknown = declared, set[str]()
        self._observed: Mapping[str, Seen] = {}
        self._budget = Budget()
        self.counts = Counts()

    def typed(self, tensor: gs.Tensor) -> Typed:
        """The element type and shape of any tensor."""
        if isinstance(tensor, gs.Constant):
            return element_type(tensor.dtype), tuple(tensor.shape)
        return self.types[tensor.name]

    def output_types(self) -> dict[str, Open]:
        """The types of the outputs, None for sizes that are data; outputs of which nothing is known are left out."""
        names = [tensor for tensor in self.host.outputs if tensor.name not in self._unknown]
        return {tensor.name: self.data_sized.get(tensor.name) or self.typed(tensor) for tensor in names}

    def constant(self, tensor: gs.Tensor) -> Array | None:
        """The value of a tensor that does not flow; None for one that does, and for parameters whose data is still empty."""
        if isinstance(tensor, gs.Constant):
            return None if tensor.name in self.empty else np.asarray(tensor.values)
        return self.known.get(tensor.name)

    def depends_on_shapes(self, node: gs.Node, present: list[gs.Tensor]) -> bool:
        if node.op in FROM_SHAPE:
            return present[0].name not in self.data_sized
        if bodies(node) or node.op == "DequantizeLinear":
            return False
        return all(self.constant(tensor) is not None for tensor in present) and any(tensor.name in self.known for tensor in present)

    def compute(self, node: gs.Node, present: list[gs.Tensor]) -> bool:
        """Note the value of what depends on shapes alone. False: nobody can tell how much there is to compute."""
        arrays: list[Array] | None
        inputs: dict[str, Array] = {}
        if node.op in FROM_SHAPE:
            shape = np.array(self.typed(present[0])[1], np.int64)
            arrays = [shape[node.attrs.get("start", 0) : node.attrs.get("end")] if node.op == "Shape" else np.array(shape.prod())]
        else:
            inputs = {tensor.name: self.constant(tensor) for tensor in present}  # type: ignore[misc]
            try:
                arrays = run_constant(proto_of(node), inputs, self.opset, self._budget)
            except GraphError:
                raise
            except Exception as error:  # whatever an operator raises on values that it does not take
                text = " ".join(str(error).split())[:120]
                raise GraphError(
                    f"{node.op} fails on the example sizes ({text})", where=node.name, remedy="Give other example sizes."
                ) from error
            if arrays is None:
                return False
        for output, array in zip([o for o in node.outputs if o.name], arrays, strict=True):
            found = np.asarray(array)
            self.known[output.name] = found
            self.types[output.name] = (element_type(found.dtype), found.shape)
        self.counts.note(node, inputs, arrays, lambda numbers: run_constant(proto_of(node), numbers, self.opset, self._budget) or ())
        return True

    def _inferred(self, node: gs.Node, present: list[gs.Tensor]) -> list[Open | None]:
        known = {}
        for tensor in present:
            constant = self.constant(tensor)
            if constant is not None and constant.size <= SIZES:
                known[tensor.name] = constant
        types = {tensor.name: self.data_sized.get(tensor.name) or self.typed(tensor) for tensor in present}
        return infer_open(proto_of(node), types, known, self.opset)

    def reads_data_sized(self, node: gs.Node) -> bool:
        return bool(self.data_sized) and any(tensor.name in self.data_sized for tensor in reads(node, self.types.keys()))

    def type_of(self, node: gs.Node, present: list[gs.Tensor], standard: bool) -> list[Typed]:
        """Types of all outputs, by inference, and where that cannot tell by running the model once."""
        if any(output.name in self._declared for output in node.outputs) or self._reads_unknown(node):
            return [self._stated(output.name) for output in node.outputs]
        tells = standard and not bodies(node) and node.op not in SEQUENCES
        found = self._inferred(node, present) if tells else [None] * len(node.outputs)
        free = self.reads_data_sized(node) or makes_data_sizes(node, lambda tensor: self.constant(tensor) is not None)
        complete: list[Typed] = []
        for output, sizes in zip(node.outputs, found, strict=True):
            typed = closed(sizes)
            if typed is None and output.name:
                typed = self._data_sized(output.name, sizes) if free else self._observed_type(output.name)
            typed = typed or (1, ())
            check_size(typed[1], node.name)
            if 0 in typed[1] and node.op not in _MAY_BE_EMPTY:
                raise GraphError(f"an empty result of shape {typed[1]}", where=node.name, remedy="Give other example sizes.")
            complete.append(typed)
        return complete

    def _reads_unknown(self, node: gs.Node) -> bool:
        return bool(self._unknown) and any(tensor.name in self._unknown for tensor in reads(node, self.types.keys()))

    def _stated(self, name: str) -> Typed:
        """The type that the file states; where it states none, nothing but a name is known, and what reads it is a barrier."""
        sizes = self._declared.get(name)
        if sizes is None:
            sizes = 1, ()
            self._unknown.add(name)
            self.data_sized[name] = sizes
        elif closed(sizes) is None:
            self.data_sized[name] = sizes
        return _filled(sizes, name)

    def _data_sized(self, name: str, sizes: Open | None) -> Typed:
        """Note a value whose sizes are data; where inference does not know its rank, the example tells it."""
        if sizes is None:
            kind, shape = self._observed_type(name)
            sizes = kind, (None,) * len(shape)
        self.data_sized[name] = sizes
        return _filled(sizes, name)

    def _observed_type(self, name: str) -> Typed:
        typed = self._observation(name)
        if typed is None:  # a sequence: what reads it is a barrier
            self.data_sized[name] = typed = 1, ()
        return typed

    def _observation(self, name: str) -> Seen:
        if name not in self._observed:
            self._observed = self._observe([o.name for node in self.host.nodes for o in node.outputs if o.name])
        if name not in self._observed:
            raise GraphError("its shape cannot be told", where=name, remedy="Run onnx.shape_inference on the model first.")
        return self._observed[name]


def _filled(sizes: Open, name: str) -> Typed:
    """A type with something in the place of each size that is not known."""
    shape = tuple(PLACEHOLDER if size is None else size for size in sizes[1])
    check_size(shape, name)
    return sizes[0], shape
