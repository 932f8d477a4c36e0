"""Writes the sizes that slicing leaves into an ONNX program: new attributes (`irtool.ops.facets.resize`) as attributes or as constant inputs.

One row an operator whose nodes state sizes. Sizes that the program computes from shapes are left to it where they come out right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from irtool.hosts.onnx.edges import cleanup
from irtool.hosts.onnx.reader import Reader
from irtool.hosts.onnx.sizes.computed import OriginalNumbers, scaled
from irtool.hosts.onnx.sizes.views import ViewGuards
from irtool.hosts.onnx.written import argument_slot
from irtool.ir.attributes import END, Attrs
from irtool.ir.graph import Node
from irtool.ir.sizes import Sizes
from irtool.ops.facets.resize import Cut, Positions, restated
from irtool.ops.spec import resized as new_attributes

if TYPE_CHECKING:
    from irtool.hosts.onnx.graph import OnnxGraph

_SHAPES = {"Reshape": "shape", "Expand": "shape", "Resize": "sizes"}
"""Name of the argument that states the sizes of the result."""
_TARGETS = {"Reshape": 1, "Expand": 1, "Resize": 3}
"""Index of the input that holds the sizes of the result."""
_SIZED = frozenset({"Reshape", "Expand", "Resize", "Upsample", "Split", "Slice", "Gather", "Pad", "Tile", "Squeeze", "Unsqueeze"})
"""Operators whose computed arguments are sizes and positions; a computed number anywhere else keeps the value it had."""


class OnnxSizeEdits:
    """Edits a copy of a graph's program.

    Args:
        graph: the graph before slicing.
        host: a copy of its program.
        sizes: what is left of each value.
    """

    def __init__(self, graph: OnnxGraph, host: gs.Graph, sizes: Sizes) -> None:
        self.graph, self.host, self.sizes = graph, host, sizes
        self.hosts: dict[str, gs.Node] = {node.name: node for node in host.nodes}
        self._views = {node.name: node for node in graph.nodes}
        self._taken: dict[str, gs.Tensor] = host.tensors()
        self._originals: OriginalNumbers | None = None
        self._guards: ViewGuards | None = None
        self.edited: list[str] = []
        """Names of nodes whose arguments changed."""

    def edit(self) -> None:
        """Edit every node that needs it."""
        for node in self.graph.nodes:
            if node.op in WRITERS and (new := new_attributes(node, self.sizes)):
                WRITERS[node.op](self, node, new)

    def stated(self, node: Node, name: str) -> list[int] | None:
        """Return an argument as it was before slicing: an input, or in older operator sets an attribute; None if it is absent."""
        index = argument_slot(node.host.op, name, self.graph.opset)
        if index is None:
            return list(node.host.attrs[name]) if name in node.host.attrs else None
        found = self._constant(node, index)
        return None if found is None else found.tolist()

    def _constant(self, node: Node, index: int) -> NDArray[Any] | None:
        """An input as it was before slicing; None if it is absent."""
        inputs = node.host.inputs
        if len(inputs) <= index or not inputs[index].name:
            return None
        tensor = inputs[index]
        return np.asarray(tensor.values) if isinstance(tensor, gs.Constant) else self.graph.known.get(tensor.name)

    def is_literal(self, node: Node, name: str) -> bool:
        """Whether an argument is written in the program rather than computed."""
        index = argument_slot(node.host.op, name, self.graph.opset)
        return index is None or isinstance(node.host.inputs[index], gs.Constant)

    def write(self, node: Node, name: str, value: Any) -> None:
        """Change an attribute if it differs: as an input where the operator set has it there."""
        index, host = argument_slot(node.host.op, name, self.graph.opset), self.hosts[node.name]
        value = list(value) if isinstance(value, tuple) else value
        if index is not None:
            self.put(node, index, value, name)
        elif host.attrs.get(name) != value:
            host.attrs[name] = value
            self.edited.append(node.name)

    def put(self, node: Node, index: int, values: Any, label: str) -> None:
        """Give the node an input of its own if it differs: the old one may have other readers."""
        host, old = self.hosts[node.name], self._constant(node, index)
        array = np.asarray(values, np.int64 if old is None else old.dtype)
        if old is not None and np.array_equal(array, old) and isinstance(node.host.inputs[index], gs.Constant):
            return
        while len(host.inputs) <= index:
            host.inputs.append(gs.Variable.empty())
        host.inputs[index] = gs.Constant(f"{node.name}.{label}", array)
        self.edited.append(node.name)

    def gather(self, node: Node, axis: int, positions: Positions) -> None:
        """Turn a slice along one axis into a selection of single entries."""
        host = self.hosts[node.name]
        host.op, host.attrs = "Gather", {"axis": axis}
        while len(host.inputs) > 1:
            host.inputs.pop()
        host.inputs.append(gs.Constant(f"{node.name}.index", positions.astype(np.int64)))
        self.edited.append(node.name)

    def gather_before(self, node: Node, axis: int, positions: Positions) -> None:
        """Select single entries along one axis of what a node reads."""
        host = self.hosts[node.name]
        name = f"{node.name}.axis_{axis}"
        picked = gs.Variable(name, host.inputs[0].dtype)
        index = gs.Constant(f"{name}.index", positions.astype(np.int64))
        gather = gs.Node("Gather", name, {"axis": axis}, [host.inputs[0], index], [picked])
        host.inputs[0] = picked
        self.host.nodes.insert(next(place for place, other in enumerate(self.host.nodes) if other is host), gather)
        self.edited.append(node.name)

    def fix(self, reader: Reader, host: gs.Node) -> None:
        """A number that the program computes from a pruned size may be wrong after slicing: put right before the node is read."""
        view = self._views.get(host.name)
        if view is None:
            return
        insert = partial(self._insert, reader)
        if host.op in _TARGETS and len(host.inputs) > _TARGETS[host.op]:
            self._fix_sizes(reader, host, view, _TARGETS[host.op])
        elif host.op not in _SIZED:
            originals = self._originals or OriginalNumbers(self.graph.known, insert)
            for index, tensor in enumerate(host.inputs):
                host.inputs[index] = originals.of(reader, host, tensor)
            self._originals = originals
        self._guards = self._guards or ViewGuards(self.graph, self.sizes.shape, insert)
        self._guards.guard(host, view)

    def notes(self) -> list[str]:
        """Facts to know of the sliced program, a line each."""
        return self._guards.notes if self._guards is not None else []

    def _insert(self, reader: Reader, host: gs.Node, nodes: Sequence[gs.Node]) -> None:
        """Put nodes in front of another one, and read them. A graph that was sliced before has some of their names already."""
        place = next(index for index, node in enumerate(self.host.nodes) if node is host)
        self.host.nodes[place:place] = nodes
        for node in nodes:
            while node.name in self.hosts:
                node.name += "_"
            for tensor in (*node.inputs, *node.outputs):
                while self._taken.setdefault(tensor.name, tensor) is not tensor:
                    tensor.name += "_"
            reader.read(node)
        self.edited.append(host.name)

    def _fix_sizes(self, reader: Reader, host: gs.Node, view: Node, index: int) -> None:
        """Entries that come out wrong are scaled, so that the free axes stay free."""
        tensor = host.inputs[index]
        computed, before = reader.known.get(tensor.name), self.graph.known.get(tensor.name)
        new = self.sizes.shape(view.output)
        if computed is None or before is None or computed.shape != (len(new),) or before.shape != computed.shape:
            return
        stated = (before == np.array(view.output.sizes)) & (before > 0)
        target = np.where(stated, new, computed).astype(computed.dtype)
        host.inputs[index] = scaled(host, tensor, target, computed, f"{host.name}.sizes", partial(self._insert, reader))


Writer = Callable[[OnnxSizeEdits, Node, Attrs], None]


def resized(graph: OnnxGraph, shapes: Mapping[str, tuple[int, ...]], sizes: Sizes) -> tuple[OnnxGraph, list[str]]:
    """A copy of the graph for parameters of other shapes, these empty yet, and the names of the nodes that were edited."""
    host = graph.host.copy()
    edits = OnnxSizeEdits(graph, host, sizes)
    edits.edit()
    changed = frozenset(shapes) - graph.selects  # an index is edited above, not sliced
    for name, tensor in host.tensors().items():
        if name in changed:
            tensor.values = np.broadcast_to(np.zeros((), tensor.dtype), shapes[name])  # one entry, whatever the shape
    new = graph.with_host(host, empty=changed, fix=edits.fix)
    new.notes = (*graph.notes, *edits.notes())
    return new, edits.edited


def complete(source: OnnxGraph, new: OnnxGraph) -> None:
    """Every parameter that nobody sliced is shared with the source already."""
    host = new.host
    cleanup(host)


def _shape(edits: OnnxSizeEdits, node: Node, new: Attrs) -> None:
    """The sizes that a program lists."""
    name = _SHAPES.get(node.host.op)
    listed = edits.stated(node, name) if name is not None else None
    if name is not None and listed is not None and len(listed) == len(node.output.sizes) and edits.is_literal(node, name):
        edits.write(node, name, restated(listed, node.output.sizes, new["shape"]))


def _split(edits: OnnxSizeEdits, node: Node, new: Attrs) -> None:
    edits.hosts[node.name].attrs.pop("num_outputs", None)
    edits.write(node, "split", new["split"])


def _slice(edits: OnnxSizeEdits, node: Node, new: Attrs) -> None:
    """Bounds over other axes than those that are pruned stay. Entries between which no even steps lead are gathered."""
    cuts: dict[int, Cut | Positions] = new["cuts"]
    starts, ends, listed, steps = (edits.stated(node, name) for name in ("starts", "ends", "axes", "steps"))
    assert starts is not None
    assert ends is not None
    axes = [axis % len(node.input.sizes) for axis in listed or range(len(starts))]
    before = steps or [1] * len(starts)
    written = list(before)
    if len(axes) > 1 and not all(edits.is_literal(node, name) for name in ("starts", "ends")):
        return  # some bounds are computed as others are
    for place, axis in enumerate(axes):
        found = cuts.get(axis, (starts[place], ends[place], written[place]))
        if isinstance(found, np.ndarray):
            if len(axes) == 1:
                edits.gather(node, axis, found)
                return
            edits.gather_before(node, axis, found)
            found = 0, None, 1  # all that is gathered
        starts[place], end, written[place] = found
        ends[place] = end if end is not None else END if written[place] > 0 else -END - 1
    edits.write(node, "starts", starts)
    edits.write(node, "ends", ends)
    if written != before:
        edits.write(node, "steps", written)


def _gather(edits: OnnxSizeEdits, node: Node, new: Attrs) -> None:
    edits.put(node, 1, new["index"], "index")


def _select(edits: OnnxSizeEdits, node: Node, new: Attrs) -> None:
    edits.hosts[node.name].inputs[1].values = new["index"]


def _pad(edits: OnnxSizeEdits, node: Node, new: Attrs) -> None:
    """Newer operator sets may list the axes."""
    rank, listed = len(node.input.sizes), edits.stated(node, "axes")
    axes = range(rank) if listed is None else [axis % rank for axis in listed]
    if new["pads"] != node.attrs["pads"]:
        edits.write(node, "pads", [new["pads"][axis + side] for side in (0, rank) for axis in axes])


def _attribute(name: str) -> Writer:
    return lambda edits, node, new: edits.write(node, name, new[name])


WRITERS: dict[str, Writer] = {
    "Reshape": _shape,
    "Expand": _shape,
    "Resize": _shape,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "ChannelSelect": _select,
    "Pad": _pad,
    "Conv": _attribute("group"),
    "ConvTranspose": _attribute("group"),
    "GroupNormalization": _attribute("num_groups"),
}
"""Writers of an operator's new attributes; not called where there are none."""
