"""A model run on several batches side by side, from node to node, in onnxruntime without fusions. Constants may change on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import ModelProto, helper

from irtool.hosts.onnx.running.frontier import described
from irtool.hosts.onnx.running.interpreter import run_batches
from irtool.quant.placement import DefUse


class Walk:
    """A model, and what later nodes read of what ran so far.

    Args:
        model: the model; a change of its initializers counts from then on.
        feeds: the inputs of each batch by name.
        kept: names of values that are looked at, and the index of the node before which they are.
    """

    def __init__(self, model: ModelProto, feeds: Sequence[Mapping[str, np.ndarray]], kept: Mapping[str, int]) -> None:
        self.model, self.wiring, self._next = model, DefUse(model), 0
        self._last = {name: index for index, node in enumerate(self.wiring.nodes) for name in node.input}
        for name, index in kept.items():
            self._last[name] = max(self._last.get(name, -1), index)
        self.live: list[dict[str, np.ndarray]] = [dict(feed) for feed in feeds]

    def advance(self, index: int) -> None:
        """Run the nodes before this one that have not run yet."""
        nodes, self._next = self.wiring.nodes[self._next : index], max(index, self._next)
        made = {name for node in nodes for name in node.output if name}
        wanted = [name for name in made if self._last.get(name, -1) >= index]
        if not wanted:
            return
        read = dict.fromkeys(name for node in nodes for name in node.input if name and name not in made)
        constants = [self.wiring.constants[name] for name in read if name in self.wiring.constants]
        needed = [name for name in read if name not in self.wiring.constants]
        inputs = [described(name, [live[name] for live in self.live]) for name in needed]
        outputs = [helper.make_empty_tensor_value_info(name) for name in wanted]
        graph = helper.make_graph(nodes, "piece", inputs, outputs, constants)
        piece = helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)
        feeds = [{name: live[name] for name in needed} for live in self.live]
        for live, found in zip(self.live, run_batches(piece, feeds, wanted), strict=True):
            live |= dict(zip(wanted, found, strict=True))
            for name in [name for name in live if self._last.get(name, -1) < index]:
                del live[name]


def live_bytes(model: ModelProto) -> int:
    """Bytes of an image's values that are alive together at most, in float32, as far as the model says their sizes."""
    wiring = DefUse(model)
    last = {name: index for index, node in enumerate(wiring.nodes) for name in node.input}
    ends: dict[int, int] = {}
    alive = most = 0
    for index, node in enumerate(wiring.nodes):
        for name in node.output:
            sizes = wiring.shapes.get(name, ())[1:]
            size = 4 * int(np.prod([size or 1 for size in sizes]))
            alive += size
            ends[last.get(name, index)] = ends.get(last.get(name, index), 0) + size
        most = max(most, alive)
        alive -= ends.pop(index, 0)
    return most
