"""Functions with a backward of their own (`torch.autograd.Function`): kept whole, since no graph holds that backward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx, nn
from torch.autograd import Function
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import CheckpointFunction

from irtool.hosts.torch.tracing.state.sandbox import TraceNotes


class OwnBackward(nn.Module):
    """A call of a `torch.autograd.Function`."""

    def __init__(self, function: type[Function]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function.apply(*args)


@contextmanager
def own_backwards(asides: TraceNotes, record: Callable[[Any, type[Function], tuple[Any, ...]], Any] | None = None) -> Iterator[None]:
    """While a tracer is at work, see to the functions of the user that it meets.

    Args:
        asides: told of those whose forward is traced through, so that the graph lacks their backward.
        record: records a call as one node; None for a tracer that cannot, which traces through them all.
    """
    inherited = "apply" not in vars(Function)
    original: Any = next(vars(base)["apply"] for base in Function.__mro__ if "apply" in vars(base))

    def apply(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
        if cls is CheckpointFunction:  # computes what it is given, with the gradients of that
            return args[0](*args[2:])
        if cls.__module__.startswith("torch."):
            return original.__get__(None, cls)(*args, **kwargs)
        tracer: Any = next((leaf.tracer for leaf in pytree.tree_leaves(args) if isinstance(leaf, fx.Proxy)), None)
        if tracer is not None and record is not None:
            try:
                return record(tracer, cls, args)
            except NotImplementedError:  # an argument that no node can hold
                pass
        if tracer is not None or record is None:
            asides.backwards.setdefault(cls.__name__)
        with _as_graded(tracer):
            return original.__get__(None, cls)(*args, **kwargs)

    Function.apply = classmethod(apply)
    try:
        yield
    finally:
        del Function.apply
        if not inherited:
            Function.apply = original


@contextmanager
def _as_graded(tracer: Any) -> Iterator[None]:
    """torch runs these functions without gradients, which is none of the user's doing and not to be told as such."""
    graded = getattr(tracer, "graded", None)
    if graded is not None:
        tracer.graded = False
    try:
        yield
    finally:
        if graded is not None:
            tracer.graded = graded


def name_in(root: nn.Module, function: type[Function]) -> str:
    """Choose the name of a function's calls in the traced module: its own, or a longer one where that is taken."""
    name = function.__name__
    while name in root._modules or hasattr(root, name):
        held = root._modules.get(name)
        if isinstance(held, OwnBackward) and held.function is function:
            return name
        name += "_"
    root._modules[name] = OwnBackward(function)
    return name


class _Ctx:
    """The context in which a forward keeps things for its backward. Telling autograd that it writes in place is refused."""

    needs_input_grad = (True,) * 64

    def save_for_backward(self, *tensors: Any) -> None:
        """Keep nothing."""

    save_for_forward = set_materialize_grads = mark_non_differentiable = save_for_backward


def recorded_by_element(function: type[Function], allowed: Callable[[fx.Node], bool]) -> fx.Graph | None:
    """A forward, recorded with what stands for its arguments, if it gives one result by allowed calls alone; None if not, or if it cannot be.

    What it returns is the argument of the graph's output.
    """
    graph, ctx = fx.Graph(), _Ctx()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    own_context: Any = getattr(function.setup_context, "__qualname__", "").startswith("_SingleLevelFunction")
    names = list(inspect.signature(function.forward).parameters.values())[1 if own_context else 0 :]
    if any(name.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD for name in names):
        return None
    try:
        result = function.forward(*([ctx] if own_context else []), *(fx.Proxy(graph.placeholder(name.name), tracer) for name in names))
    except Exception:  # the user's code, which may look at what is not there
        return None
    if not isinstance(result, fx.Proxy) or not all(node.op == "placeholder" or allowed(node) for node in graph.nodes):
        return None
    graph.output(result.node)
    return graph
