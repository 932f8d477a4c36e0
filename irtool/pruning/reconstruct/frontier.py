"""Two graphs on calibration batches: one run and sampled, the other run up to a layer by all batches side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

from torch import Tensor, fx

from irtool.hosts.torch.graph import FxGraph
from irtool.hosts.torch.interpreter import run_with, steps
from irtool.hosts.torch.modes import evaluating
from irtool.ir.graph import Node, Value
from irtool.pruning.absorb.contribution import channel_axis
from irtool.pruning.reconstruct.images import Batch
from irtool.pruning.reconstruct.refit import Task

Seen = Callable[[str, Tensor], None]
"""Called with a watched node's name and its output."""


class Frontier(Protocol):
    """The sliced graph on all batches, advanced from layer to layer. Weights may change between."""

    gains: dict[str, Tensor]
    """What the outputs of layers gain from now on, by the layer's name, float64, shape (outputs,)."""

    def usable(self, task: Task) -> bool:
        """Whether what the layer reads can be seen."""

    def advance(self, node: Node) -> None:
        """Run all batches up to this layer."""

    def value(self, batch: int, value: Value) -> Tensor:
        """A value that the next layer reads, or that is added to its output."""

    def running(self) -> AbstractContextManager[Any]:
        """A block in which the graph is in eval mode."""

    def close(self) -> None:
        """End the runs."""


def watch_torch(graph: FxGraph, batch: Batch, names: set[str], seen: Seen) -> None:
    """Run a torch graph, and show the outputs of some nodes at the time they are made."""

    def hook(view: Node | None, host: fx.Node, value: Any) -> Any:
        if view is not None and view.name in names:
            seen(view.name, value)
        return value

    run_with(graph, batch, hook)


class TorchFrontier:
    """`Frontier` over a torch graph: a run a batch, each stopped before the next layer.

    Args:
        graph: the sliced graph, whose weights may be exchanged on the way.
        batches: arguments of the graph.
        tasks: the layers at which to stop.
    """

    def __init__(self, graph: FxGraph, batches: Sequence[Batch], tasks: Sequence[Task]) -> None:
        self.graph, self.gains = graph, dict[str, Tensor]()
        self._place = {host: place for place, host in enumerate(graph.module.graph.nodes)}
        self._next = 0
        self._source: dict[tuple[str, Value], fx.Node] = {}
        self._last: dict[fx.Node, int] = {}
        for task in tasks:
            for value, reader in self._reads(task):
                source = next((used for used in reader.host.all_input_nodes if graph.value_of(used) is value), None)
                if source is not None:
                    self._source[task.node.name, value] = source
                    self._last[source] = max(self._last.get(source, 0), self._place[task.node.host])
        self._kept: list[dict[fx.Node, Tensor]] = [{} for _ in batches]
        self._runs = [steps(graph, batch, partial(self._hook, number)) for number, batch in enumerate(batches)]
        self._task: str = ""

    def _reads(self, task: Task) -> list[tuple[Value, Node]]:
        found = [(task.node.input, task.node)]
        if task.other is not None:
            found.append((task.other, next(use for use in task.other.uses if use.name == task.watched)))
        return found

    def usable(self, task: Task) -> bool:
        """Whether what the layer reads can be seen."""
        return all((task.node.name, value) in self._source for value, _ in self._reads(task))

    def running(self) -> AbstractContextManager[Any]:
        """A block in which the graph is in eval mode: runs side by side would each put the flags back."""
        return evaluating(self.graph.module)

    def advance(self, node: Node) -> None:
        """Run all batches up to this layer."""
        self._task = node.name
        place = self._place[node.host]
        for run, kept in zip(self._runs, self._kept, strict=True):
            for _ in range(place - self._next):
                next(run)
            for host in [host for host in kept if self._last[host] < place]:
                del kept[host]
        self._next = place

    def value(self, batch: int, value: Value) -> Tensor:
        """A value that the next layer reads, or that is added to its output."""
        return self._kept[batch][self._source[self._task, value]]

    def close(self) -> None:
        """End the runs."""
        for run in self._runs:
            run.close()

    def _hook(self, number: int, view: Node | None, host: fx.Node, value: Any) -> Any:
        gain = self.gains.get(view.name) if view is not None and self.gains else None
        if gain is not None:
            assert view is not None
            value = value + along_channels(view, gain).to(value)
        if host in self._last:
            self._kept[number][host] = value
        return value


def along_channels(node: Node, vector: Tensor) -> Tensor:
    """A number a channel, in the shape that is added to a layer's output."""
    after = len(node.output.sizes) - 1 - channel_axis(node, node.output)
    return vector.reshape([-1] + [1] * after)
