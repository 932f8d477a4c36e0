"""Running a graph node by node: to look at what flows, or to change it on the way."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from irtool.errors import GraphError
from irtool.hosts.torch.modules import attribute, call, copy_module
from irtool.ir.graph import Node
from irtool.modes import evaluating
from irtool.nests import cast, map_tensors

if TYPE_CHECKING:
    from irtool.hosts.torch.graph import FxGraph

Hook = Callable[[Node | None, fx.Node, Any], Any]
"""`hook(node, host, value) -> value`: sees each host node's result and says what flows on. `node` is None where the view
has no node of its own (a parameter that is fetched, a size, a member picked out of a tuple)."""


def cast_module(module: nn.Module, dtype: torch.dtype) -> Any:
    """A copy of the module with floating parameters and buffers in `dtype`."""
    return copy_module(module, lambda name, tensor: tensor.to(dtype, copy=True) if tensor.is_floating_point() else tensor.clone())


def run_with(graph: FxGraph, inputs: Sequence[Any], hook: Hook | None = None, dtype: torch.dtype | None = None) -> Any:
    """Run a graph in eval mode without gradients, with a say in what each node gives.

    Args:
        graph: not changed; its train/eval flags are as before afterwards.
        inputs: the positional arguments. Cloned first, so that an operator that works in place cannot reach them.
        hook: its result takes the place of the node's. It should give back the very value where it changes nothing, and
            a new tensor where it does: operators that work in place see what it returns.
        dtype: compute in this type instead (`torch.float64`): weights are copied, narrower types written in the program
            (`x.float()`, `dtype=torch.float32`) are widened.

    Returns:
        What the graph returns, in its own structure.

    Raises:
        GraphError: an input is missing, or a node cannot run; the text names the node.
    """
    return drain(steps(graph, inputs, hook, dtype))


def drain(run: Generator[Any, None, Any]) -> Any:
    """Run a generator to its end, and return what it returns."""
    while True:
        try:
            next(run)
        except StopIteration as stop:
            return stop.value


def steps(
    graph: FxGraph, inputs: Sequence[Any], hook: Hook | None = None, dtype: torch.dtype | None = None
) -> Generator[tuple[Node | None, fx.Node, Any], None, Any]:
    """`run_with` as a generator that stops after each node and yields (node, host node, value); it returns the output.

    A value is dropped after its last use: of the whole run only what is still needed is held.
    """
    module = graph.module if dtype is None else cast_module(graph.module, dtype)
    views = {node.host: node for node in graph.nodes}
    frame = _Frame(graph, module, inputs, dtype)
    with evaluating(module):
        for host in graph.module.graph.nodes:
            if host.op == "output":
                return graph.module.graph.process_outputs(frame.arguments(host)[0][0])
            view = views.get(host)
            with torch.no_grad():
                value = found = frame.compute(host, view)
                if hook is not None:
                    value = hook(view, host, value)
            frame.store(host, value, live=host.op == "get_attr" and value is found)
            yield view, host, value
            del value
            frame.forget(host)
    return None


class _Frame:
    """The values that are alive."""

    def __init__(self, graph: FxGraph, module: nn.Module, inputs: Sequence[Any], dtype: torch.dtype | None) -> None:
        self.module, self.dtype = module, dtype
        self.values: dict[fx.Node, Any] = {}
        given = map_tensors(tuple(inputs), torch.clone)
        self._live: set[fx.Node] = set()
        self._feed = list(graph.module.graph.process_inputs(*(given if dtype is None else cast(given, dtype))))
        self._dead: dict[fx.Node, list[fx.Node]] = {}
        last = {used: host for host in graph.module.graph.nodes for used in (host, *host.all_input_nodes)}
        for used, host in last.items():
            self._dead.setdefault(host, []).append(used)

    def compute(self, host: fx.Node, view: Node | None) -> Any:
        """Run one host node."""
        if host.op == "placeholder":
            return self._input(host)
        if host.op == "get_attr":
            return self._widened(attribute(self.module, str(host.target)))
        args, kwargs = self.arguments(host)
        try:
            if self.dtype is not None and host.op == "call_method" and host.target in ("float", "half", "bfloat16"):
                return args[0].to(self.dtype)
            return self._widened(call(self.module, host, args, kwargs))
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            where = view.location if view is not None else host.name
            raise GraphError(
                f"cannot run: {reason}", where=where, remedy="Pass inputs of the sizes and types that the graph was traced with."
            ) from error

    def arguments(self, host: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The node's arguments with values in place of nodes."""
        args, kwargs = (fx.node.map_aggregate(part, self._argument) for part in (host.args, host.kwargs))
        return args, kwargs  # type: ignore[return-value]

    def store(self, host: fx.Node, value: Any, *, live: bool = False) -> None:
        """Keep a result for its readers. One that is `live` is a weight, which may be exchanged before its reader runs."""
        self.values[host] = value
        if live:
            self._live.add(host)

    def forget(self, host: fx.Node) -> None:
        """Drop what nobody reads after this node."""
        for used in self._dead.get(host, ()):
            self.values.pop(used, None)

    def _argument(self, leaf: Any) -> Any:
        if isinstance(leaf, fx.Node):
            return self._widened(attribute(self.module, str(leaf.target))) if leaf in self._live else self.values[leaf]
        if self.dtype is not None and isinstance(leaf, torch.dtype) and leaf.is_floating_point and leaf.itemsize < self.dtype.itemsize:
            return self.dtype
        return leaf

    def _widened(self, result: Any) -> Any:
        wide = self.dtype
        if wide is None:
            return result
        return map_tensors(result, lambda t: t.to(wide) if t.is_floating_point() and t.dtype.itemsize < wide.itemsize else t)

    def _input(self, host: fx.Node) -> Any:
        if self._feed:
            return self._feed.pop(0)
        if host.args:
            return host.args[0]
        raise GraphError("no value for this input", where=host.name, remedy="Pass one for each argument of forward.")
