"""Functions of the user's own (`torch.autograd.Function`), whose code no file holds: written as the operators that they call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from irtool.hosts.torch.graph import FxGraph
from irtool.hosts.torch.modules import add_node, copy_module, submodule
from irtool.hosts.torch.operators import by_element
from irtool.hosts.torch.tracing.recording.autograd import OwnBackward

_CLOSE = 1e-6
"""How far two gradients of the same function may lie apart in float64, relative to the largest entry: they are computed by other steps."""


def plain_functions(graph: FxGraph) -> FxGraph:
    """A graph that calls the elementwise operators of such functions, where their own backward is the gradient of these operators.

    The graph itself where it calls none. A function with another gradient (a straight-through estimator) stays: without its
    code a loaded graph would train otherwise.
    """
    called = [node for node in graph.module.graph.nodes if node.op == "call_module" and _own(graph.module, node) is not None]
    replaced = [node.name for node in called if _has_its_gradient(_own(graph.module, node), _arguments(graph, node))]
    if not replaced:
        return graph
    module = copy_module(graph.module, lambda name, tensor: tensor)
    for node in [node for node in module.graph.nodes if node.name in replaced]:
        _inline(module, node)
    module.delete_all_unused_submodules()
    module.recompile()
    return FxGraph(module, graph.example_inputs, tracer=graph.tracer, history=graph.history)


def _own(module: nn.Module, node: fx.Node) -> Any:
    """The function that a node calls, if it is one of the user's own."""
    held = submodule(module, str(node.target))
    return held.function if isinstance(held, OwnBackward) else None


def _arguments(graph: FxGraph, node: fx.Node) -> list[Any]:
    """The arguments of a call, random numbers of the same shapes in place of tensors."""
    generator = torch.Generator().manual_seed(0)

    def drawn(arg: Any) -> Any:
        value = graph.value_of(arg) if isinstance(arg, fx.Node) else None
        if value is None or not value.dtype.is_floating_point:
            return arg
        return (3 * torch.randn(value.shape, generator=generator, dtype=torch.float64)).requires_grad_()

    return [drawn(arg) for arg in node.args]


def _has_its_gradient(function: Any, args: Sequence[Any]) -> bool:
    """Whether the own backward of a function gives what the operators of its forward give."""
    recorded = by_element(function)
    if recorded is None or len(args) != len(recorded.find_nodes(op="placeholder")) or any(isinstance(arg, fx.Node) for arg in args):
        return False
    program = fx.GraphModule({}, recorded)
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    with torch.enable_grad():
        try:
            own, plain = (torch.autograd.grad(call(*args).sum(), tensors, allow_unused=True) for call in (function.apply, program))
        except Exception:  # the user's code, on numbers that it may not like
            return False
    return all(map(_alike, own, plain))


def _alike(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None or one.shape != other.shape:
        return one is None and other is None
    return bool((one - other).abs().max() <= _CLOSE * max(float(other.abs().max()), 1.0)) if other.numel() else True


def _inline(module: fx.GraphModule, node: fx.Node) -> None:
    """Put the nodes of a function's forward in the place of its call."""
    recorded = by_element(_own(module, node))
    assert recorded is not None
    held: dict[fx.Node, Any] = dict(zip(recorded.find_nodes(op="placeholder"), node.args, strict=True))
    with module.graph.inserting_before(node):
        for inner in recorded.nodes:
            args, kwargs = (fx.node.map_arg(part, held.__getitem__) for part in (inner.args, inner.kwargs))
            if inner.op == "output":
                node.replace_all_uses_with(args[0])
            elif inner.op != "placeholder":
                held[inner] = add_node(module.graph, inner.op, inner.target, args, kwargs)
                held[inner].meta.update(nn_module_stack=node.meta.get("nn_module_stack", {}))
    module.graph.erase_node(node)
