"""torch.fx's tracer as irtool uses it: what is recorded whole, what is traced into, and with values or without."""

from __future__ import annotations

import copy
import inspect
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from irtool.errors import TraceError
from irtool.hosts.torch.modules import add_node, attribute, call, copy_module, empty_like, meta, modules_by_path
from irtool.hosts.torch.operators import module_spec
from irtool.hosts.torch.tracing.recording.aliases import canonical
from irtool.hosts.torch.tracing.recording.assignment import assign
from irtool.hosts.torch.tracing.recording.attention import emit_attention
from irtool.hosts.torch.tracing.recording.autograd import name_in
from irtool.hosts.torch.tracing.recording.counted import Counted
from irtool.hosts.torch.tracing.recording.hooks import HiddenHooks, computes_with, hooked, through
from irtool.hosts.torch.tracing.recording.proxies import ConcreteProxy, TracedParameter, TracedProxy
from irtool.hosts.torch.tracing.state.flags import Flag
from irtool.hosts.torch.tracing.state.sandbox import TraceNotes, alike
from irtool.nests import map_tensors


class SymbolicTracer(fx.Tracer):
    """torch.fx's tracer with irtool's idea of a leaf: a module whose operator is known, or that the user names."""

    def __init__(self, leaf: Sequence[str | type] = (), given: int = 0, asides: TraceNotes | None = None) -> None:
        super().__init__(autowrap_modules=(__import__("math"),), param_shapes_constant=True)
        self._leaf, self._given, self._asides = leaf, given, asides or TraceNotes()
        self.graded = torch.is_grad_enabled()
        self.added: set[str] = set()
        self.offered: list[fx.Node] = []
        """Values that forward was given and may not have asked for."""
        self._opened: nn.Module | None = None
        self._has_rule: dict[type, bool] = {}
        self._around: tuple[str, Any] = ("", None)
        self._first: dict[int, dict[str, Any]] = {}

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Trace a model, as torch's tracer does; tensors of each layer are noted first, so that an exchange of them shows."""
        self._first = {id(module): computes_with(module) for module in modules_by_path(root).values() if not module._modules}
        graph = super().trace(root, concrete_args)
        for node in self.offered:
            _erase_unused(node)
        return graph

    def _is_exchanged(self, m: nn.Module) -> bool:
        """Whether a layer computes with other tensors or options than when tracing began: `functional_call` swaps weights in."""
        before = self._first.get(id(m))
        if before is None:
            return False
        now = computes_with(m)
        return now.keys() != before.keys() or not all(map(alike, now.values(), before.values()))

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """`forward(*xs)` is traced with as many arguments as the example has."""
        return super().create_args_for_root(_spelt_out(root_fn, self._given), is_module, concrete_args)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if m is self._opened:
            return False
        if self._is_named(m, module_qualified_name):
            return True
        kind = type(m)
        if "forward" in m.__dict__:  # replaced for this one object: its class says nothing of it
            return False
        if kind not in self._has_rule:
            self._has_rule[kind] = module_spec(m) is not None
        own = kind.__module__.startswith("torch.nn")
        return self._has_rule[kind] or (own and not m._modules and not isinstance(m, nn.Sequential))

    def path_of_module(self, mod: nn.Module) -> str:
        """Return a layer's path, as torch's tracer does; a layer that forward itself makes on its first call is found, too."""
        try:
            return super().path_of_module(mod)
        except NameError:
            found = next((path for path, module in modules_by_path(self.root).items() if module is mod), None)
            if found is None:
                raise
            return found

    def _is_named(self, m: nn.Module, path: str) -> bool:
        """Whether the user asked for the module to stay whole."""
        return bool(self._leaf) and (path in self._leaf or isinstance(m, tuple(kind for kind in self._leaf if isinstance(kind, type))))

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, fx.Proxy):
            return a.node
        if isinstance(a, torch.Tensor) and a.grad_fn is not None:  # as a constant it would follow no training
            raise TraceError("a tensor is computed from parameters that were not asked for by name", remedy="Read them as attributes.")
        if type(a) is OrderedDict:  # torch makes a plain dict of it
            return super().create_node("call_function", OrderedDict, ([(key, self.create_arg(value)) for key, value in a.items()],), {})
        if isinstance(a, dict) and is_dataclass(a) and set(a) <= {field.name for field in fields(a)}:  # or of a result with names
            return super().create_node("call_function", type(a), (), {key: self.create_arg(value) for key, value in a.items()})
        if type(a) is tuple:  # most calls have a tuple of proxies and no keywords: torch looks at a dozen other kinds first
            return tuple(map(self.create_arg, a))
        return {} if type(a) is dict and not a else super().create_arg(a)

    def create_node(
        self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str | None = None, type_expr: Any = None
    ) -> fx.Node:
        """Make a node, as torch's tracer does; nodes of one module's `forward` share one record of the modules around them."""
        if kind == "call_method" and target == "new_empty":  # see factories.py
            target = "new_zeros"
        target, kwargs = canonical(kind, target, kwargs)
        node = add_node(self.graph, kind, target, args, kwargs, name, type_expr)
        if self.module_stack:
            call = next(reversed(self.module_stack))  # its name tells one call from another, and so all that lies around it
            if call != self._around[0]:
                self._around = (call, self.module_stack.copy())
            node.meta["nn_module_stack"] = self._around[1]
        if torch.is_grad_enabled() != self.graded and kind != "get_attr":
            self._asides.ungraded.setdefault(node.name)
        if torch._C._is_any_autocast_enabled():
            self._asides.cast.setdefault(node.name)
        return node

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return TracedProxy(node, self)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        path = self.path_of_module(m)
        leaf: Callable[..., Any] | None = None
        if type(m) is nn.MultiheadAttention and path not in self._leaf:
            leaf = partial(self._write_out, m)
            if m.dropout:  # of the weights, inside of one operator
                self._asides.asked.setdefault(path)
        elif self.is_leaf_module(m, path):
            if self._is_exchanged(m) and not self._is_named(m, path):
                self._opened = m
                if "training" in type(m).forward.__code__.co_names:
                    self._asides.asked.setdefault(path)
                return super().call_module(m, forward, args, kwargs)
            leaf = partial(self._record, path, self._is_named(m, path))
        if hooked(m) and not self._is_named(m, path):
            return self._through_hooks(m, path, forward, args, kwargs, leaf)
        if leaf is not None:
            return leaf(*args, **kwargs)
        if m._backward_hooks or m._backward_pre_hooks:
            if m._is_full_backward_hook is False:  # torch would look for a tensor in what stands for it, without end
                raise HiddenHooks(path)
            self._asides.hooked_back.setdefault(path)
        return super().call_module(m, forward, args, kwargs)

    def _through_hooks(
        self, m: nn.Module, path: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], leaf: Callable[..., Any] | None
    ) -> Any:  # fmt: skip
        def around(*args: Any, **kwargs: Any) -> Any:
            self._opened = None
            return through(m, path, forward, args, kwargs, leaf, self._asides, values=isinstance(self, ConcreteTracer))

        self._opened = m  # torch asks once more whether it is a leaf
        return super().call_module(m, around, args, kwargs)

    def _write_out(self, m: nn.MultiheadAttention, *args: Any, **kwargs: Any) -> Any:
        """Record attention in plain operators; its weights, which most callers drop, are looked at again at the end."""
        output, weights = emit_attention(m, *args, **kwargs)
        if isinstance(weights, fx.Proxy):
            self.offered.append(weights.node)
        return output, weights

    def _record(self, path: str, whole: bool, *args: Any, **kwargs: Any) -> Any:
        made = self.create_proxy("call_module", path, args, kwargs)
        if whole:  # the user says so, whatever is known of its class
            made.node.meta["whole"] = True
        return made

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        """A module's attribute: what stands for it, if it is a parameter, or a buffer whose writes are recorded."""
        factory: Callable[[fx.Node], fx.Proxy] | None = None
        path = self._asides.recorded.get(id(attr_val)) if self._asides.recorded else None
        if isinstance(attr_val, nn.Parameter):
            path = next((name for name, parameter in self.root.named_parameters() if parameter is attr_val), None)
            factory = partial(TracedParameter, self, name=attr, param=attr_val)
        if path is None:
            return attr_val
        if path not in parameter_proxy_cache:
            parameter_proxy_cache[path] = self.create_proxy("get_attr", path, (), {}, proxy_factory_fn=factory)
        return parameter_proxy_cache[path]

    def python_call(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Record what one of Python's own functions makes of numbers of the program; a length is needed at once."""
        return len(args[0]) if function is len else self.create_proxy("call_function", function, args, {})

    def assign(self, target: fx.Proxy, index: Any, value: Any) -> None:
        """Record `target[index] = value`."""
        assign(target, index, value)

    def own_backward(self, function: type[torch.autograd.Function], args: tuple[Any, ...]) -> Any:
        """Record a call of a function with a backward of its own: the graph calls it too."""
        name = name_in(self.root, function)
        self.added.add(name)
        return self.create_proxy("call_module", name, args, {})


class ConcreteTracer(SymbolicTracer):
    """Runs each operator on meta tensors while it records it. Data-dependent branches still fail, as they must."""

    def __init__(self, inputs: Sequence[Any], leaf: Sequence[str | type] = (), asides: TraceNotes | None = None) -> None:
        super().__init__(leaf, len(inputs), asides)
        self._feed = [map_tensors(item, meta) for item in inputs]
        self._values: dict[fx.Node, Any] = {}
        self._counted = Counted()
        self._computing = False
        """Whether a layer runs on values, and the layers in it with it: nothing of that is recorded."""

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return forward(*args, **kwargs) if self._computing else super().call_module(m, forward, args, kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        made = ConcreteProxy(node, self)
        made.value = self._known(node)
        return made

    def _value(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self._feed.pop(0) if self._feed else (node.args[0] if node.args else None)
        if node.op == "get_attr":
            found = held_at(self.root, str(node.target))
            constant = str(node.target).startswith("_tensor_constant")  # what forward made, and decides by: a number, a causal mask
            return meta(found) if isinstance(found, torch.Tensor) and not (constant and found.numel() <= _SMALL) else found
        if node.op == "output":
            return None
        args: Any = fx.node.map_aggregate(node.args, self._plain)
        kwargs: Any = fx.node.map_aggregate(node.kwargs, self._plain)
        with torch.no_grad():
            if node.op == "call_module":
                # Not through __call__, which is the tracer's own hook for the time being.
                return self._layer(self.root.get_submodule(str(node.target)), str(node.target), args, kwargs)
            try:
                return call(self.root, node, args, kwargs)
            except AttributeError as error:  # in a property of a proxy, Python would ask for another attribute, without end
                raise TraceError(str(error)) from error
            except NotImplementedError:
                return self._on_zeros(node, args, kwargs)
            except RuntimeError:  # what the program makes of sizes (anchors) is real, and meets values that are not
                return call(self.root, node, map_tensors(args, meta), map_tensors(kwargs, meta))

    def _layer(self, held: nn.Module, path: str, args: Any, kwargs: Any) -> Any:
        """Compute a layer on values: a copy of it, in eval mode."""
        whole, self._computing = self._is_named(held, path), True
        try:
            copied = copy_module(held, empty_like).eval()
            return (copied._call_impl if whole else copied.forward)(*args, **kwargs)
        except NotImplementedError:  # a part that stays whole for what it does with numbers
            if not whole:
                raise
            copied = copy.deepcopy(held).eval()
            return map_tensors(copied._call_impl(*map_tensors(args, _zeros), **map_tensors(kwargs, _zeros)), meta)
        finally:
            self._computing = False

    def _on_zeros(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """The shapes that an operator gives which cannot run without numbers; a number that it computes would be made up."""
        with self._counted.watched(node):
            found = call(self.root, node, map_tensors(args, _zeros), map_tensors(kwargs, _zeros))
        if not all(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(found)):
            raise TraceError(f"{node.name} computes a number from the values of a tensor", remedy="Compute it outside of forward.")
        return map_tensors(found, meta)

    def _plain(self, arg: Any) -> Any:
        return self._known(arg) if isinstance(arg, fx.Node) else arg.plain if isinstance(arg, Flag) else arg

    def _known(self, node: fx.Node) -> Any:
        """A node's value; the tracer makes nodes for buffers and constants without a proxy."""
        if node not in self._values:
            self._values[node] = self._value(node)
            self._counted.follow(node, self._values[node])
        return self._values[node]

    def python_call(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Call a function of Python that the user's code calls; a tensor's length is its first size."""
        if function is len and isinstance(args[0], ConcreteProxy) and isinstance(args[0].value, torch.Tensor):
            return args[0].size(0)
        return super().python_call(function, args)

    def is_instance(self, obj: ConcreteProxy, kinds: Any) -> bool:
        """Whether the value is of one of the classes."""
        return isinstance(obj, kinds) or isinstance(getattr(obj, "value", None), kinds)

    def to_bool(self, obj: fx.Proxy) -> bool:
        self.written(obj)
        self._asides.branches.setdefault(obj.node.name)
        return bool(obj.value)

    def written(self, obj: fx.Proxy) -> None:
        """Note the user's line that makes a plain number of a value: the graph holds that number from there on."""
        self._counted.refuse(obj.node)
        if isinstance(obj.value, int | float):
            frame = sys._getframe(2)
            while frame is not None and frame.f_code.co_filename.startswith(NOT_THE_USERS):
                frame = frame.f_back
            if frame is not None:
                self._asides.sized.setdefault(obj.node.name, f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        members: Any = obj
        if isinstance(obj.value, torch.Tensor):
            self._counted.refuse(obj.node)
        return iter([members[index] for index in range(len(members.value))])

    def keys(self, obj: fx.Proxy) -> Any:
        return obj.value.keys()


_SMALL = 1 << 16
"""Entries of a constant that the concrete tracer computes with, and not only with its shape."""


def _erase_unused(node: fx.Node) -> None:
    """Erase a value that nobody uses, and what was computed for it alone."""
    if node.users or node.op not in ("call_function", "call_method"):
        return
    read = node.all_input_nodes
    node.graph.erase_node(node)
    for other in read:
        _erase_unused(other)


def _zeros(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros(tensor.shape, dtype=tensor.dtype)


_OURS = next(folder for folder in Path(__file__).parents if folder.name == "irtool")
NOT_THE_USERS = (*(f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, _OURS)), "<")
"""By their folders: a user's own path may hold a folder called torch or irtool. What begins with < was generated."""


def held_at(root: nn.Module, path: str) -> Any:
    """The object at a dotted path. While a tracer is at work, asking a module for a parameter gives a proxy of it instead."""
    prefix, _, name = path.rpartition(".")
    owner = root.get_submodule(prefix)
    slots = (owner._parameters, owner._buffers, owner.__dict__)
    return next((slot[name] for slot in slots if name in slot), None) if any(name in slot for slot in slots) else attribute(root, path)


def _spelt_out(forward: Any, given: int) -> Any:
    """A function of plain arguments in place of one with `*args`, `**kwargs` or arguments by keyword alone; others as they are.

    The example gives arguments by position, so that nothing arrives in `**kwargs`; a decorator that is in between sees the call as it was.
    """
    parameters = list(inspect.signature(forward).parameters.values())
    rest = next((p for p in parameters if p.kind is inspect.Parameter.VAR_POSITIONAL), None)
    if all(p.kind in _PLAIN_ARGUMENTS for p in parameters):
        return forward
    fixed = [p for p in parameters if p.kind in _PLAIN_ARGUMENTS]
    named = [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    names = [p.name for p in fixed] + ([f"{rest.name}_{i}" for i in range(given - len(fixed) + 1)] if rest is not None else [])
    left_out = {p.name: p.default for p in [*fixed[given + 1 :], *named] if p.default is not inspect.Parameter.empty}
    head = ", ".join(f"{name}=left_out[{name!r}]" if name in left_out else name for name in [*names, *(p.name for p in named)])
    scope: dict[str, Any] = {"forward": forward, "left_out": left_out}
    exec(f"def spelt_out({head}):\n    return forward({', '.join([*names, *(f'{p.name}={p.name}' for p in named)])})", scope)
    return scope["spelt_out"]


_PLAIN_ARGUMENTS = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
