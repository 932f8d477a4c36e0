"""Gradients of what nodes read, each reader's alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from irtool.ir.graph import Node, Value
from irtool.modes import evaluating

if TYPE_CHECKING:
    from irtool.hosts.torch.graph import FxGraph

Seen = Callable[[str, Tensor, Tensor], None]
"""Called with a reader's name, what it read, and the gradient of that."""


def run_backward(
    graph: FxGraph,
    reads: Sequence[tuple[Node, Value]],
    changing: set[Value],
    batch: Sequence[Any],
    loss: Callable[[Any], Tensor | None],
    seen: Seen,
) -> bool:
    """Run a batch forwards in eval mode, and a loss backwards; parameters get no gradients. False if the loss depends on no read value.

    Args:
        graph: the program; its weights, buffers and flags stay as they are.
        reads: nodes, and the value of theirs that is looked at.
        changing: values that something may write over after they were read.
        batch: arguments of `forward`.
        loss: of the outputs, a scalar; None if they have none.
        seen: what is called for each read.
    """
    with evaluating(graph.module), frozen(graph.module), torch.enable_grad():
        recorder = _Recorder(graph, reads, changing, seen)
        found = loss(recorder.run(*batch))
        recorder.env.clear()  # the hooks hold the recorder, and through the outputs it would hold them: a ring that Python does not see
        if found is None or not found.requires_grad:
            return False
        found.backward()
    return True


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Parameters need no gradients for a while: those of activations cost half as much without."""
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


class _Recorder(fx.Interpreter):
    """Runs a graph with an alias of what each node reads, whose gradient is that reader's alone."""

    def __init__(self, graph: FxGraph, reads: Sequence[tuple[Node, Value]], changing: set[Value], seen: Seen) -> None:
        super().__init__(graph.module)
        self._value_of, self._changing, self._seen = graph.value_of, changing, seen
        self._reads = {node.host: (node.name, value) for node, value in reads}

    def run_node(self, n: fx.Node) -> Any:
        name, value = self._reads.get(n, ("", None))
        used = next((used for used in n.all_input_nodes if self._value_of(used) is value), None) if value is not None else None
        held = self.env.get(used) if used is not None else None
        if used is None or value is None or not isinstance(held, Tensor) or not held.is_floating_point():
            return super().run_node(n)
        kept = held.clone() if value in self._changing else held
        alias = kept.view_as(kept) if kept.requires_grad else kept.detach().requires_grad_()
        read = alias.detach()
        alias.register_hook(lambda gradient: self._seen(name, read, gradient))
        self.env[used] = alias
        try:
            return super().run_node(n)
        finally:
            self.env[used] = held
