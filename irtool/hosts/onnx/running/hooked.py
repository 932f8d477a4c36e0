"""An ONNX graph run node by node in onnxruntime, with a hook in the place of each node of the view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs
import torch
from torch import Tensor

from irtool.hosts.onnx.running.evaluate import Array
from irtool.hosts.onnx.running.frontier import OnnxFrontier
from irtool.hosts.onnx.running.interpreter import run_batches
from irtool.ir.graph import Node, Value
from irtool.ir.hooks import Hook

if TYPE_CHECKING:
    from irtool.hosts.onnx.graph import OnnxGraph


def run_hooked(
    graph: OnnxGraph, inputs: Sequence[Any], hook: Hook, names: Sequence[str], made: Mapping[str, Array], left: Set[str]
) -> list[Tensor]:
    """Run a graph, and return the values named; see `Graph.run_hooked`.

    Args:
        graph, inputs, hook: what is run.
        names: the values to return.
        made: numbers in the place of results that onnxruntime cannot make.
        left: the values that can be run.
    """
    runner = _Hooked(graph, inputs, hook, names)
    runner.given(made, left)
    return runner.run()


class _Hooked(OnnxFrontier):
    """Pieces of one node each. What nothing reads any more is let go, but for the values that are asked for."""

    _sized = True  # onnxruntime wants to know how many sizes a Resize is given

    def __init__(self, graph: OnnxGraph, inputs: Sequence[Any], hook: Hook, names: Sequence[str]) -> None:
        super().__init__(graph, [tuple(inputs)], [])
        self._hook, self._names = hook, list(names)
        self._last = {}
        for number, host in enumerate(self._hosts):
            self._last |= {tensor.name: number for tensor in self._read_by(host)}
        self._last |= dict.fromkeys(self._names, len(self._hosts))
        self._constants = {value.name: value.data.numpy() for value in graph.outputs if value.data is not None}
        """Outputs that nothing computes."""
        self._values = {value.name: value for node in graph.nodes for value in (*node.inputs, *node.outputs) if not value.is_param}

    def given(self, made: Mapping[str, Array], left: Set[str]) -> None:
        """Take numbers in the place of what cannot be run."""
        self._live[0] |= made
        self._left = left - set(made)

    def run(self) -> list[Tensor]:
        """The values asked for."""
        live = self._live[0]
        for number, host in enumerate(self._hosts):
            if not any(output.name in self._left for output in host.outputs):
                continue
            node = self._views.get(host.name)
            live |= self._computed(host, {}) if node is None else self._hooked(host, node)
            for name in [name for name in live if self._last.get(name, -1) <= number]:
                del live[name]
        return [torch.from_numpy(np.array(live[name] if name in live else self._constants[name])) for name in self._names]

    def _hooked(self, host: gs.Node, node: Node) -> dict[str, Array]:
        """Compute a node, and let the hook change those of its outputs that are tensors."""
        live, held = self._live[0], dict[str, Array]()
        read = {tensor.name for tensor in host.inputs}
        given = {
            value: torch.from_numpy(np.array(live[name]))
            for name, value in self._values.items()
            if name in read and isinstance(live.get(name), np.ndarray)
        }

        def compute(instead: Mapping[Value, Tensor]) -> list[Tensor]:
            held.clear()
            held.update(self._computed(host, {value.name: x.detach().cpu().numpy() for value, x in instead.items()}))
            return [torch.from_numpy(np.array(held[name])) for name in names if isinstance(held.get(name), np.ndarray)]

        names = [value.name for value in node.outputs]
        found = self._hook(node, given, compute)
        shown = [name for name in names if not held or isinstance(held.get(name), np.ndarray)]
        return {
            **held,
            **{name: x.detach().cpu().numpy() for name, x in zip(shown, found, strict=False)},
        }  # what nobody reads may be missing

    def _computed(self, host: gs.Node, instead: Mapping[str, Array]) -> dict[str, Array]:
        """A node's own results."""
        wanted = [output.name for output in host.outputs if output.name]
        live = {**self._live[0], **instead}
        model, needed = self._piece([host], wanted, [live])
        return dict(zip(wanted, run_batches(model, [{name: live[name] for name in needed}], wanted)[0], strict=True))
