"""An ONNX graph run in pieces, each in onnxruntime, from layer to layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import torch
from onnx import ModelProto, helper, numpy_helper
from onnx_graphsurgeon.exporters.onnx_exporter import update_import_domains
from torch import Tensor

from irtool.hosts.onnx.evaluate import Array, element_type, proto_of
from irtool.hosts.onnx.graph import OnnxGraph
from irtool.hosts.onnx.interpreter import run_batches
from irtool.hosts.onnx.subgraphs import bodies, captured
from irtool.ir.graph import Node, Value
from irtool.pruning.absorb.contribution import channel_axis
from irtool.pruning.reconstruct.images import Batch
from irtool.pruning.reconstruct.refit import Task


def watch_onnx(graph: OnnxGraph, batch: Batch, names: set[str], seen: Callable[[str, Tensor], None]) -> None:
    """Run an ONNX graph, and show the outputs of some nodes."""
    watched = [node for node in graph.nodes if node.name in names]
    for node, value in zip(watched, graph.run(*batch, values=[node.output.name for node in watched]), strict=True):
        seen(node.name, value)


class OnnxFrontier:
    """`Frontier` over an ONNX graph: what later pieces read is kept between them.

    Args:
        graph: the sliced graph, whose weights may be exchanged on the way.
        batches: arguments of the graph.
        tasks: the layers at which to stop.
    """

    def __init__(self, graph: OnnxGraph, batches: Sequence[Batch], tasks: Sequence[Task]) -> None:
        self.graph, self.gains = graph, dict[str, Tensor]()
        self._hosts = [node for node in graph.host.nodes]
        self._views = {node.host.name: node for node in graph.nodes if node.host is not None}
        place = {node.name: number for number, node in enumerate(self._hosts)}
        self._place = {task.node.name: place[task.node.host.name] for task in tasks}
        self._next = 0
        self._outside = set(graph.host.tensors())
        self._last: dict[str, int] = {}
        end = max(self._place.values(), default=0)
        for number, host in enumerate(self._hosts[: end + 1]):
            self._last |= {tensor.name: number for tensor in self._read_by(host)}
        for task in tasks:
            if task.other is not None:
                self._last[task.other.name] = max(self._last.get(task.other.name, 0), self._place[task.node.name])
        names = [tensor.name for tensor in graph.host.inputs]
        self._live: list[dict[str, Array]] = [
            {name: part.detach().cpu().numpy() for name, part in zip(names, batch, strict=True)} for batch in batches
        ]

    def usable(self, task: Task) -> bool:
        """Whether what the layer reads can be seen."""
        return True

    def running(self) -> AbstractContextManager[Any]:
        """Nothing has to be set."""
        return nullcontext()

    def close(self) -> None:
        """Let go of what is kept."""
        self._live.clear()

    def advance(self, node: Node) -> None:
        """Run all batches up to this layer."""
        place = self._place[node.name]
        hosts, self._next = self._hosts[self._next : place], place
        if not hosts:
            return
        made = [output.name for host in hosts for output in host.outputs if output.name]
        wanted = [name for name in made if self._last.get(name, -1) >= place]
        if not wanted:
            return
        model, needed = self._piece(hosts, wanted)
        feeds = [{name: live[name] for name in needed} for live in self._live]
        for live, found in zip(self._live, run_batches(model, feeds, wanted), strict=True):
            live |= dict(zip(wanted, found, strict=True))
            for name in [name for name in live if self._last.get(name, -1) < place]:
                del live[name]

    def value(self, batch: int, value: Value) -> Tensor:
        """A value that the next layer reads, or that is added to its output."""
        return torch.from_numpy(np.array(self._live[batch][value.name]))

    def _read_by(self, host: gs.Node) -> Iterator[gs.Tensor]:
        yield from (tensor for tensor in host.inputs if tensor.name)
        if bodies(host):
            yield from captured(host, self._outside)

    def _piece(self, hosts: Sequence[gs.Node], wanted: Sequence[str]) -> tuple[ModelProto, list[str]]:
        """Some nodes as a model of its own, and the names of what it reads."""
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
            gain = self.gains.get(view.name) if view is not None else None
            if gain is not None:
                assert view is not None
                raw, constant = f"{proto.output[0]}.before_gain", f"{proto.output[0]}.gain"
                after = len(view.output.sizes) - 1 - channel_axis(view, view.output)
                data = gain.reshape([-1] + [1] * after).to(view.output.dtype or torch.float32).numpy()
                weights.append(numpy_helper.from_array(data, constant))
                protos.append(helper.make_node("Add", [raw, constant], [proto.output[0]]))
                proto.output[0] = raw
        live = self._live[0]
        inputs = [helper.make_tensor_value_info(name, element_type(live[name].dtype), [None] * live[name].ndim) for name in needed]
        outputs = [helper.make_empty_tensor_value_info(name) for name in wanted]
        graph = helper.make_graph(protos, "piece", inputs, outputs, weights)
        imports, version = update_import_domains(self.graph.host), max(self.graph.header.ir_version, 4)
        return helper.make_model(graph, opset_imports=imports, ir_version=version), list(needed)
