"""A torch graph on several batches side by side: a run for each, stopped before the next layer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx

from irtool.hosts.torch.running.interpreter import run_with, steps
from irtool.ir.frontier import Batch, Seen, Stop
from irtool.ir.graph import Node, Value
from irtool.modes import evaluating

if TYPE_CHECKING:
    from irtool.hosts.torch.graph import FxGraph


def observe(graph: FxGraph, batch: Batch, names: Collection[str], seen: Seen) -> None:
    """Run a torch graph, and show the outputs of some nodes at the time they are made."""

    def hook(view: Node | None, host: fx.Node, value: Any) -> Any:
        if view is not None and view.name in names:
            seen(view.name, value)
        return value

    run_with(graph, batch, hook)


class TorchFrontier:
    """`irtool.ir.frontier.Frontier` over a torch graph.

    Args:
        graph: whose weights may be exchanged on the way.
        batches: arguments of the graph.
        stops: where to stop, in the order of the nodes.
    """

    def __init__(self, graph: FxGraph, batches: Sequence[Batch], stops: Sequence[Stop]) -> None:
        self.graph, self.added = graph, dict[str, Tensor]()
        self._place = {host: place for place, host in enumerate(graph.module.graph.nodes)}
        self._next, self._stop = 0, ""
        self._source: dict[tuple[str, Value], fx.Node] = {}
        self._last: dict[fx.Node, int] = {}
        for stop in stops:
            for value, reader in stop.reads:
                source = next((used for used in reader.host.all_input_nodes if graph.value_of(used) is value), None)
                if source is not None:
                    self._source[stop.node.name, value] = source
                    self._last[source] = max(self._last.get(source, 0), self._place[stop.node.host])
        self._kept: list[dict[fx.Node, Tensor]] = [{} for _ in batches]
        self._runs = [steps(graph, batch, partial(self._hook, number)) for number, batch in enumerate(batches)]

    def usable(self, stop: Stop) -> bool:
        """Whether all that the stop looks at can be seen."""
        return all((stop.node.name, value) in self._source for value, _ in stop.reads)

    @contextmanager
    def running(self) -> Iterator[None]:
        """A block in which the graph is in eval mode: runs side by side would each put the flags back."""
        with evaluating(self.graph.module):
            try:
                yield
            finally:
                for run in self._runs:
                    run.close()
                self._kept.clear()

    def advance(self, node: Node) -> None:
        """Run all batches up to this stop."""
        place, self._stop = self._place[node.host], node.name
        for run, kept in zip(self._runs, self._kept, strict=True):
            for _ in range(place - self._next):
                next(run)
            for host in [host for host in kept if self._last[host] < place]:
                del kept[host]
        self._next = place

    def value(self, batch: int, value: Value) -> Tensor:
        """A value that the stop looks at."""
        return self._kept[batch][self._source[self._stop, value]]

    def output(self, node: Node, x: Tensor) -> Tensor:
        """Compute a layer for an input of its own."""
        return self.graph.evaluate(node, {node.input: x})[0]

    def _hook(self, number: int, view: Node | None, host: fx.Node, value: Any) -> Any:
        added = self.added.get(view.name) if view is not None and self.added else None
        if added is not None:
            value = value + added.to(value)
        if host in self._last:
            self._kept[number][host] = value
        return value
