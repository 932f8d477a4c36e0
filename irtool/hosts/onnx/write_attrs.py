"""Sizes written into an ONNX program are rewritten from the sizes that its values have after slicing.

One row an operator of the view. Sizes that the program computes from shapes are left to it where they come out right.
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
from irtool.ir.graph import Node
from irtool.ir.sizes import Sizes

if TYPE_CHECKING:
    from irtool.hosts.onnx.graph import OnnxGraph

Ints = NDArray[np.int64]
_TARGETS = {"Reshape": 1, "Expand": 1, "Resize": 3}
"""Which input holds the sizes of the result."""
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
            editor = EDITORS.get(node.op)
            if editor is not None and any(self.sizes.shape(value) != value.shape for value in (*node.inputs, *node.outputs)):
                editor(self, node)

    def constant(self, node: Node, index: int) -> NDArray[Any] | None:
        """An argument as it was before slicing; None if it is absent."""
        inputs = node.host.inputs
        if len(inputs) <= index or not inputs[index].name:
            return None
        tensor = inputs[index]
        return np.asarray(tensor.values) if isinstance(tensor, gs.Constant) else self.graph.known.get(tensor.name)

    def listed(self, node: Node, index: int, name: str) -> list[int] | None:
        """An argument as it was before slicing: an input, or in older operator sets an attribute; None if it is absent."""
        found = self.constant(node, index)
        return list(node.host.attrs[name]) if name in node.host.attrs else None if found is None else found.tolist()

    def is_literal(self, node: Node, index: int) -> bool:
        """Whether an argument is written in the program rather than computed."""
        return isinstance(node.host.inputs[index], gs.Constant)

    def put(self, node: Node, index: int, values: Sequence[int] | Ints, label: str) -> None:
        """Give the node an argument of its own: the old one may have other readers."""
        host = self.hosts[node.name]
        old = self.constant(node, index)
        array = np.asarray(values, np.int64 if old is None else old.dtype)
        if old is not None and np.array_equal(array, old) and self.is_literal(node, index):
            return
        constant = gs.Constant(f"{node.name}.{label}", array)
        while len(host.inputs) <= index:
            host.inputs.append(gs.Variable.empty())
        host.inputs[index] = constant
        self.edited.append(node.name)

    def set_attr(self, node: Node, name: str, value: Any) -> None:
        """Change an attribute if it differs."""
        host = self.hosts[node.name]
        if host.attrs.get(name) != value:
            host.attrs[name] = value
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


def _sizes_of_result(edits: OnnxSizeEdits, node: Node) -> None:
    index = _TARGETS.get(node.host.op)
    old = edits.constant(node, index) if index is not None else None
    if index is None or old is None or not edits.is_literal(node, index) or old.shape != (len(node.output.sizes),):
        return
    pairs = zip(old.tolist(), edits.sizes.shape(node.output), node.output.sizes, strict=True)
    edits.put(node, index, [new if listed == before else listed for listed, new, before in pairs], "sizes")


def _split(edits: OnnxSizeEdits, node: Node) -> None:
    axis = node.attrs["axis"]
    new = [edits.sizes.shape(output)[axis] for output in node.outputs]
    if new == [output.sizes[axis] for output in node.outputs]:
        return
    if edits.graph.opset < 13:
        edits.set_attr(node, "split", new)
        return
    edits.hosts[node.name].attrs.pop("num_outputs", None)
    edits.put(node, 1, new, "split")


def _slice(edits: OnnxSizeEdits, node: Node) -> None:
    """Bounds over a pruned axis move to where their channels are now; bounds over other axes stay."""
    starts, ends, listed, steps = (edits.listed(node, index, name) for index, name in enumerate(("starts", "ends", "axes", "steps"), 1))
    assert starts is not None
    assert ends is not None
    axes = [axis % len(node.input.sizes) for axis in listed or range(len(starts))]
    steps = steps or [1] * len(starts)
    moved = False
    for place, axis in enumerate(axes):
        kept, size = edits.sizes.kept(node.input, axis), node.input.sizes[axis]
        if kept is None or abs(steps[place]) != 1:
            continue
        chosen = np.arange(size)[_python_slice(starts[place], ends[place], steps[place], size)]
        if chosen.size == size:
            continue  # all of it, whatever there is
        positions = np.searchsorted(kept, chosen[np.isin(chosen, kept)])
        first, last = (int(positions.min()), int(positions.max()) + 1) if positions.size else (0, 0)
        starts[place], ends[place] = (first, last) if steps[place] > 0 else (last - 1, first - 1 if first else -(2**31))
        moved = True
    if not moved:
        return
    if edits.graph.opset < 10:
        edits.set_attr(node, "starts", starts)
        edits.set_attr(node, "ends", ends)
    elif len(axes) == 1 or (edits.is_literal(node, 1) and edits.is_literal(node, 2)):
        edits.put(node, 1, starts, "starts")
        edits.put(node, 2, ends, "ends")


def _python_slice(start: int, end: int, step: int, size: int) -> slice:
    """ONNX clamps bounds as Python does, and an end below -size means "to the beginning"."""
    return slice(start, None if step < 0 and end < -size else end, step)


def _gather(edits: OnnxSizeEdits, node: Node) -> None:
    """A constant index over a pruned axis: the positions of what is still there."""
    axis = node.attrs["axis"]
    kept, old = edits.sizes.kept(node.input, axis), edits.constant(node, 1)
    if kept is None or old is None or old.ndim > 1:
        return
    index = old % node.input.sizes[axis]
    edits.put(node, 1, np.searchsorted(kept, index if old.ndim == 0 else index[np.isin(index, kept)]), "index")


def _select(edits: OnnxSizeEdits, node: Node) -> None:
    """An owned selection: its copies that stay, at their sources' new positions."""
    index = node.operands["index"]
    assert index.data is not None
    copies, kept, old = edits.sizes.kept(index, 0), edits.sizes.kept(node.input, 1), index.data.numpy()
    old = old if copies is None else old[copies]
    edits.hosts[node.name].inputs[1].values = old if kept is None else np.searchsorted(kept, old)


def _pad(edits: OnnxSizeEdits, node: Node) -> None:
    rank, pads = len(node.input.sizes), node.attrs["pads"]
    new = {}
    for axis in range(rank):
        before, after = pads[axis], pads[rank + axis]
        kept, size = edits.sizes.kept(node.output, axis), node.input.sizes[axis]
        if kept is not None and (before or after):
            before, after = int((kept < before).sum()), int((kept >= before + size).sum())
        new[axis] = (before, after)
    amounts = [new[axis][0] for axis in range(rank)] + [new[axis][1] for axis in range(rank)]
    if amounts == list(pads):
        return
    if edits.graph.opset < 11:
        edits.set_attr(node, "pads", amounts)
    elif len(node.host.inputs) < 4:
        edits.put(node, 1, amounts, "pads")


def _conv(edits: OnnxSizeEdits, node: Node) -> None:
    """A depthwise convolution has as many groups as input channels; of another whole groups may go."""
    if node.attrs["group"] > 1:
        edits.set_attr(node, "group", edits.sizes.groups(node))


def _group_norm(edits: OnnxSizeEdits, node: Node) -> None:
    """Group norm with a channel a group stays that."""
    if node.attrs["num_groups"] == node.input.sizes[1]:
        edits.set_attr(node, "num_groups", edits.sizes.shape(node.input)[1])


EDITORS: dict[str, Callable[[OnnxSizeEdits, Node], None]] = {
    "Reshape": _sizes_of_result,
    "Expand": _sizes_of_result,
    "Resize": _sizes_of_result,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "ChannelSelect": _select,
    "Pad": _pad,
    "Conv": _conv,
    "ConvTranspose": _conv,
    "GroupNormalization": _group_norm,
}
