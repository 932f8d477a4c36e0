"""From a user's `nn.Module` to a graph, in three tries: symbolic, concrete (values ride along), `torch.export`."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.fx import _symbolic_trace
from torch.utils import _pytree as pytree

from irtool.collection import uncollected
from irtool.errors import TraceError
from irtool.ir.fx_attention import emit_attention
from irtool.ir.fx_graph import FxGraph
from irtool.ir.fx_mend import mend
from irtool.ir.fx_module import add_node, attribute, call, copy_module, empty_like, lazy, map_tensors, meta, modules_by_path
from irtool.ir.fx_proxy import ConcreteProxy, Flag, TracedProxy
from irtool.ir.fx_refusals import explained, refuse_hidden
from irtool.ir.fx_targets import module_spec
from irtool.ir.fx_untouched import Asides, untouched
from irtool.ir.fx_within import capture
from irtool.ir.fx_writes import settle_writes, unsettle


@uncollected()
def trace(model: nn.Module, example_inputs: Any, *, leaf: Sequence[str | type] = (), within: str | None = None) -> FxGraph:
    """Turn a model into a graph.

    Args:
        model: any module. Its layers are shared with the graph, weights and modes with them; what `forward` writes into the
            module itself is taken back.
        example_inputs: a tensor, or a tuple of the positional arguments of `forward`. Shapes matter, values do not.
        leaf: module paths or classes that stay whole; irtool leaves what flows into them alone.
        within: the path of a part. The whole model runs up to it, and the part is traced alone on what reaches it; its
            outputs stay as they are, and `put_back` puts the pruned part into the model.

    Raises:
        TraceError: none of the three tracers could follow the model; the text names the line and the remedy.
    """
    if not isinstance(model, nn.Module):
        raise TraceError(
            f"expected an nn.Module, got {type(model).__name__}", remedy="Load the weights into an instance of the model's class first."
        )
    inputs = tuple(example_inputs) if isinstance(example_inputs, tuple | list) else (example_inputs,)
    if within is not None:
        model, inputs = capture(model, inputs, within)
    refuse_hidden(model)
    failures: list[tuple[str, Exception]] = []
    opaque: FxGraph | None = None
    asides = Asides()
    for name, flags in ATTEMPTS:
        if flags is False and name != "export" and not (failures and _BOOLEAN.search(str(failures[-1][1]))):
            continue  # that a flag is no bool was not what failed
        asides = asides.again()
        try:
            graph = _attempt(model, inputs, tuple(leaf), name, asides, flags=flags)
        except Exception as error:
            failures.append((name, error))
            continue
        if not any(
            node.op == "Opaque" and node.host.op == "call_function" and inspect.isfunction(node.host.target) for node in graph.nodes
        ):
            return graph
        opaque = opaque or graph  # a function that its author hid from tracing (fx.wrap): the next tracer may see inside
    if opaque is not None:
        return opaque
    raise explained(model, inputs, failures)


def _attempt(model: nn.Module, inputs: tuple[Any, ...], leaf: tuple[str | type, ...], name: str, asides: Asides, *, flags: bool) -> FxGraph:
    """One tracer's graph, mended; `flags`: see `untouched`."""
    with untouched(model, asides, flags=flags):
        module = TRACERS[name](model, inputs, leaf, asides)
    plain = settle_writes(module, inputs)
    graph = FxGraph(mend(module, inputs, asides if flags else None), inputs, tracer=name)
    if plain and unsettle(plain, lambda node: getattr(graph.value_of(node), "dtype", None)):
        graph.module.recompile()
        graph.refresh()
    graph.origin, graph.notes = model, asides.notes(model)
    return graph


class SymbolicTracer(fx.Tracer):
    """torch.fx's tracer with irtool's idea of a leaf: a module whose operator is known, or that the user names."""

    def __init__(self, leaf: Sequence[str | type] = (), given: int = 0, asides: Asides | None = None) -> None:
        super().__init__(autowrap_modules=(__import__("math"),), param_shapes_constant=True)
        self._leaf, self._given, self._asides = leaf, given, asides or Asides()
        self._graded = torch.is_grad_enabled()
        self._has_rule: dict[type, bool] = {}
        self._around: tuple[str, Any] = ("", None)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """`forward(*xs)` is traced with as many arguments as the example has."""
        return super().create_args_for_root(_spelt_out(root_fn, self._given), is_module, concrete_args)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self._leaf or isinstance(m, tuple(kind for kind in self._leaf if isinstance(kind, type))):
            return True
        kind = type(m)
        if "forward" in m.__dict__:  # replaced for this one object: its class says nothing of it
            return False
        if kind not in self._has_rule:
            self._has_rule[kind] = module_spec(m) is not None
        own = kind.__module__.startswith("torch.nn")
        return self._has_rule[kind] or (own and not m._modules and not isinstance(m, nn.Sequential))

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, fx.Proxy):
            return a.node
        if type(a) is tuple:  # most calls have a tuple of proxies and no keywords: torch looks at a dozen other kinds first
            return tuple(map(self.create_arg, a))
        return {} if type(a) is dict and not a else super().create_arg(a)

    def create_node(
        self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str | None = None, type_expr: Any = None
    ) -> fx.Node:
        """As torch's; nodes that one module's `forward` makes share one record of the modules around them."""
        node = add_node(self.graph, kind, target, args, kwargs, name, type_expr)
        if self.module_stack:
            call = next(reversed(self.module_stack))  # its name tells one call from another, and so all that lies around it
            if call != self._around[0]:
                self._around = (call, self.module_stack.copy())
            node.meta["nn_module_stack"] = self._around[1]
        if torch.is_grad_enabled() != self._graded and kind != "get_attr":
            self._asides.ungraded.setdefault(node.name)
        if torch._C._is_any_autocast_enabled():
            self._asides.cast.setdefault(node.name)
        return node

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return TracedProxy(node, self)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        path = self.path_of_module(m)
        if type(m) is nn.MultiheadAttention and path not in self._leaf:
            return emit_attention(m, *args, **kwargs)
        if self.is_leaf_module(m, path):
            return self.create_proxy("call_module", path, args, kwargs)
        return super().call_module(m, forward, args, kwargs)


class ConcreteTracer(SymbolicTracer):
    """Runs each operator on meta tensors while it records it. Data-dependent branches still fail, as they must."""

    def __init__(self, inputs: Sequence[Any], leaf: Sequence[str | type] = (), asides: Asides | None = None) -> None:
        super().__init__(leaf, len(inputs), asides)
        self._feed = [map_tensors(item, meta) for item in inputs]
        self._values: dict[fx.Node, Any] = {}

    def proxy(self, node: fx.Node) -> fx.Proxy:
        made = ConcreteProxy(node, self)
        made.value = self._value(node)
        self._values[node] = made.value
        return made

    def _value(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self._feed.pop(0) if self._feed else (node.args[0] if node.args else None)
        if node.op == "get_attr":
            found = _held(self.root, str(node.target))
            return meta(found) if isinstance(found, torch.Tensor) else found
        if node.op == "output":
            return None
        args: Any = fx.node.map_aggregate(node.args, self._plain)
        kwargs: Any = fx.node.map_aggregate(node.kwargs, self._plain)
        with torch.no_grad():
            if node.op == "call_module":
                # Not through __call__, which is the tracer's own hook for the time being.
                return copy_module(self.root.get_submodule(str(node.target)), empty_like).eval().forward(*args, **kwargs)
            try:
                return call(self.root, node, args, kwargs)
            except RuntimeError:  # what the program makes of sizes (anchors) is real, and meets values that are not
                return call(self.root, node, map_tensors(args, meta), map_tensors(kwargs, meta))

    def _plain(self, arg: Any) -> Any:
        return self._known(arg) if isinstance(arg, fx.Node) else arg.plain if isinstance(arg, Flag) else arg

    def _known(self, node: fx.Node) -> Any:
        """A node's value; the tracer makes nodes for buffers and constants without a proxy."""
        if node not in self._values:
            self._values[node] = self._value(node)
        return self._values[node]

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(obj.value)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        members: Any = obj
        return iter([members[index] for index in range(len(members.value))])

    def keys(self, obj: fx.Proxy) -> Any:
        return obj.value.keys()


def _held(root: nn.Module, path: str) -> Any:
    """The object at a dotted path. While a tracer is at work, asking a module for a parameter gives a proxy of it instead."""
    prefix, _, name = path.rpartition(".")
    owner = root.get_submodule(prefix)
    slots = (owner._parameters, owner._buffers, owner.__dict__)
    return next((slot[name] for slot in slots if name in slot), None) if any(name in slot for slot in slots) else attribute(root, path)


def _symbolic(model: nn.Module, inputs: Sequence[Any], leaf: Sequence[str | type], asides: Asides) -> fx.GraphModule:
    tracer = SymbolicTracer(leaf, len(inputs), asides)
    graph = tracer.trace(model, _defaults(model, inputs))
    return lazy(tracer.root, graph, type(model).__name__)


def _concrete(model: nn.Module, inputs: Sequence[Any], leaf: Sequence[str | type], asides: Asides) -> fx.GraphModule:
    tracer = ConcreteTracer(inputs, leaf, asides)
    with _unwrapped():
        graph = tracer.trace(model, _defaults(model, inputs))
    return lazy(tracer.root, graph, type(model).__name__)


@contextmanager
def _unwrapped() -> Iterator[None]:
    """Trace into functions that were marked `torch.fx.wrap`: with values at hand there is no reason to stop at them."""
    hidden = getattr(_symbolic_trace, "_wrapped_fns_to_patch", {})
    kept = dict(hidden)
    hidden.clear()
    try:
        yield
    finally:
        hidden.update(kept)


def _spelt_out(forward: Any, given: int) -> Any:
    """A function of fixed arguments in place of one with `*args`; others as they are."""
    parameters = list(inspect.signature(forward).parameters.values())
    rest = next((p for p in parameters if p.kind is inspect.Parameter.VAR_POSITIONAL), None)
    if rest is None:
        return forward
    fixed = [p.name for p in parameters if p.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    names = ", ".join([*fixed, *(f"{rest.name}_{i}" for i in range(given - len(fixed) + 1))])
    scope: dict[str, Any] = {"forward": forward}
    exec(f"def spelt_out({names}):\n    return forward({names})", scope)
    return scope["spelt_out"]


def _defaults(model: nn.Module, inputs: Sequence[Any]) -> dict[str, Any] | None:
    """Arguments that are None, and those that the example leaves out, are constants (`mask=None` and the like)."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    absent = [
        p.name for p, given in zip(parameters, inputs, strict=False) if given is None and p.kind is not inspect.Parameter.VAR_POSITIONAL
    ]
    rest = {p.name: p.default for p in parameters[len(inputs) :] if p.default is not inspect.Parameter.empty}
    return {**dict.fromkeys(absent), **rest} or None


def _export(model: nn.Module, inputs: Sequence[Any], leaf: Sequence[str | type], asides: Asides) -> fx.GraphModule:
    if leaf:
        raise TraceError("torch.export cannot keep named modules whole", remedy="Drop leaf=.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, tuple(inputs), strict=False, dynamic_shapes=_dynamic_batch(inputs))
        module = program.module()
    for refused in ("train", "eval"):  # exported modules refuse both; `mend` puts back what the modes change
        module.__dict__.pop(refused, None)
    modes = {path: child.training for path, child in modules_by_path(model).items()}
    for path, child in modules_by_path(module).items():  # torch.export leaves them all in train mode
        child.training = modes.get(path, model.training)
    for node in list(module.graph.nodes):
        if not node.users and _is_guard(node):
            module.graph.erase_node(node)
    module.recompile()
    return module


def _is_guard(node: fx.Node) -> bool:
    name = str(node.target)
    return node.op != "placeholder" and any(part in name for part in ("_guards", "_assert", "sym_constrain", "aten.sym_"))


def _dynamic_batch(inputs: Sequence[Any]) -> Any:
    """Axis 0 dynamic where it is at least 2 (torch specialises 0 and 1), else left for torch to infer."""
    auto = torch.export.Dim.AUTO
    return tuple(
        pytree.tree_map(lambda leaf: {0: auto} if isinstance(leaf, torch.Tensor) and leaf.dim() > 0 and leaf.shape[0] > 1 else None, item)
        for item in inputs
    )


TRACERS: dict[str, Callable[[nn.Module, Sequence[Any], Sequence[str | type], Asides], fx.GraphModule]] = {
    "symbolic": _symbolic, "concrete": _concrete, "export": _export,
}  # fmt: skip
ATTEMPTS = (("symbolic", True), ("symbolic", False), ("concrete", True), ("concrete", False), ("export", False))
"""In this order; without noting flags again where the model wants its flags to be of type bool."""
_BOOLEAN = re.compile("Flag|bool")
