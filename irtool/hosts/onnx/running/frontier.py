"""An ONNX graph run in pieces, each in onnxruntime, from layer to layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs
import torch
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from onnx_graphsurgeon.exporters.onnx_exporter import update_import_domains
from torch import Tensor

from irtool.hosts.onnx.files.subgraphs import bodies, captured
from irtool.hosts.onnx.running.evaluate import Array, element_type, proto_of
from irtool.hosts.onnx.running.interpreter import run_batches
from irtool.ir.frontier import Batch, Stop
from irtool.ir.graph import Node, Value

if TYPE_CHECKING:
    from irtool.hosts.onnx.graph import OnnxGraph


class OnnxFrontier:
    """`irtool.ir.frontier.Frontier` over an ONNX graph: what later pieces read is kept between them.

    Args:
        graph: whose weights may be exchanged on the way.
        batches: arguments of the graph.
        stops: where to stop, in the order of the nodes.
    """

    _sized = False
    """Whether pieces are made for the sizes of what they read, rather than for any."""

    def __init__(self, graph: OnnxGraph, batches: Sequence[Batch], stops: Sequence[Stop]) -> None:
        self.graph, self.added = graph, dict[str, Tensor]()
        self._hosts = list(graph.host.nodes)
        self._views = {node.host.name: node for node in graph.nodes if node.host is not None}
        place = {node.name: number for number, node in enumerate(self._hosts)}
        self._place = {stop.node.name: place[stop.node.host.name] for stop in stops}
        self._next, self._unseen = 0, graph.behind_foreign()
        self._outside = set(graph.host.tensors())
        self._last: dict[str, int] = {}
        end = max(self._place.values(), default=0)
        for number, host in enumerate(self._hosts[: end + 1]):
            self._last |= {tensor.name: number for tensor in self._read_by(host)}
        for stop in stops:
            for value, _ in stop.reads:
                self._last[value.name] = max(self._last.get(value.name, 0), self._place[stop.node.name])
        names = [tensor.name for tensor in graph.host.inputs]
        self._live: list[dict[str, Array]] = [
            {name: part.detach().cpu().numpy() for name, part in zip(names, batch, strict=True)} for batch in batches
        ]

    def usable(self, stop: Stop) -> bool:
        """Whether all that the stop looks at can be seen: every tensor has a name, and most can be run."""
        return not any(value.name in self._unseen for value, _ in stop.reads)

    @contextmanager
    def running(self) -> Iterator[None]:
        """A block at whose end what is held is let go."""
        try:
            yield
        finally:
            self._live.clear()

    def advance(self, node: Node) -> None:
        """Run all batches up to this stop."""
        place = self._place[node.name]
        hosts, self._next = self._hosts[self._next : place], place
        hosts = [host for host in hosts if not any(output.name in self._unseen for output in host.outputs)]
        if not hosts:
            return
        made = [output.name for host in hosts for output in host.outputs if output.name]
        wanted = [name for name in made if self._last.get(name, -1) >= place]
        if not wanted:
            return
        model, needed = self._piece(hosts, wanted, self._live)
        feeds = [{name: live[name] for name in needed} for live in self._live]
        for live, found in zip(self._live, run_batches(model, feeds, wanted), strict=True):
            live |= dict(zip(wanted, found, strict=True))
            for name in [name for name in live if self._last.get(name, -1) < place]:
                del live[name]

    def value(self, batch: int, value: Value) -> Tensor:
        """A value that the stop looks at."""
        return torch.from_numpy(np.array(self._live[batch][value.name]))

    def output(self, node: Node, x: Tensor) -> Tensor:
        """Compute a layer for an input of its own."""
        feed = {node.input.name: np.ascontiguousarray(x.numpy())}
        model, _ = self._piece([node.host], [node.output.name], [feed])
        return torch.from_numpy(np.array(run_batches(model, [feed], [node.output.name])[0][0]))

    def _read_by(self, host: gs.Node) -> Iterator[gs.Tensor]:
        yield from (tensor for tensor in host.inputs if tensor.name)
        if bodies(host):
            yield from captured(host, self._outside)

    def _piece(self, hosts: Sequence[gs.Node], wanted: Sequence[str], lives: Sequence[Mapping[str, Array]]) -> tuple[ModelProto, list[str]]:
        """Some nodes as a model of its own, and the names of what it reads; `lives` have them, of any sizes."""
        made = {output.name for host in hosts for output in host.outputs}
        constants, needed, tensors = dict[str, gs.Constant](), dict[str, None](), self.graph.host.tensors()
        for host in hosts:
            for tensor in self._read_by(host):
                outer = tensors.get(tensor.name, tensor)
                if isinstance(outer, gs.Constant):
                    constants[outer.name] = outer
                elif tensor.name not in made:
                    needed[tensor.name] = None
        weights = [numpy_helper.from_array(np.asarray(constant.values), name) for name, constant in constants.items()]
        protos = []
        for host in hosts:
            proto = proto_of(host)
            protos.append(proto)
            view = self._views.get(host.name)
            added = self.added.get(view.name) if view is not None else None
            if view is not None and added is not None:
                addition, constant = _added(proto, added.to(view.output.dtype or torch.float32))
                protos.append(addition)
                weights.append(constant)
        inputs = [described(name, [live[name] for live in lives], sized=self._sized) for name in needed]
        outputs = [helper.make_empty_tensor_value_info(name) for name in wanted]
        graph = helper.make_graph(protos, "piece", inputs, outputs, weights)
        imports, version = update_import_domains(self.graph.host), max(self.graph.header.ir_version, 4)
        return helper.make_model(graph, opset_imports=imports, ir_version=version), list(needed)


def described(name: str, arrays: Sequence[Array | list[Array]], *, sized: bool = False) -> ValueInfoProto:
    """Describe an input of a piece: a tensor, or a sequence of some.

    Args:
        name: of the input.
        arrays: what it is given, one a batch.
        sized: state the sizes of the first; by default they are free, but for how long a list of whole numbers is where all are as
            long: onnxruntime takes a list of unknown length for an empty one where it is read as sizes.
    """
    array = arrays[0]
    if isinstance(array, list):
        return helper.make_tensor_sequence_value_info(name, element_type(array[0].dtype) if array else TensorProto.FLOAT, None)
    listed = array.ndim == 1 and array.dtype.kind == "i" and all(np.shape(other) == array.shape for other in arrays)
    return helper.make_tensor_value_info(name, element_type(array.dtype), array.shape if sized or listed else [None] * array.ndim)


def _added(proto: NodeProto, data: Tensor) -> tuple[NodeProto, TensorProto]:
    """An addition that takes over the name of the node's output, and its constant."""
    output = proto.output[0]
    proto.output[0] = f"{output}.before_added"
    constant = numpy_helper.from_array(data.numpy(), f"{output}.added")
    return helper.make_node("Add", [proto.output[0], constant.name], [output]), constant
