"""Reads a torch.fx program into the view: example values, shapes, nodes."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from irtool.errors import GraphError
from irtool.hosts.torch.attributes import attributes
from irtool.hosts.torch.examples import Examples
from irtool.hosts.torch.modules import attribute, call, copy_module, empty_like, meta, modules_by_path
from irtool.hosts.torch.operators import Spec, callee, function_spec, module_callee, module_spec, target_of_write
from irtool.hosts.torch.shapes import infer_shape
from irtool.hosts.torch.sizes.counts import counts_of, sizes_of
from irtool.hosts.torch.tracing.recording.hooks import hooked
from irtool.ir.graph import Node, Value
from irtool.nests import look_into, map_tensors, tensors_in

Fix = Callable[[fx.Node, Mapping[fx.Node, Any]], None]
"""Called before a host node is read, with the example values so far."""


class Reader:
    """One walk over the host: example values, shapes, and the view's nodes."""

    def __init__(self, module: fx.GraphModule, example_inputs: Sequence[Any], fix: Fix | None) -> None:
        self.module, self.example_inputs = module, example_inputs
        self.values: dict[fx.Node, Any] = {}
        self.examples = Examples(self.values)
        self.nodes: list[Node] = []
        self.inputs: list[Value] = []
        self.outputs: list[Value] = []
        self.params: dict[str, Value] = {}
        self.known: dict[int, Value] = {}
        self.modules = modules_by_path(module)
        self.names: dict[int, str] = {}
        self.slots: list[tuple[dict[str, Any], str]] = []
        for path, child in self.modules.items():
            for held in (child._parameters, child._buffers):
                for name, tensor in held.items():
                    if tensor is not None:
                        self.names.setdefault(id(tensor), f"{path}.{name}" if path else name)
                        self.slots.append((held, name))
        self._specs: dict[type, Spec | None] = {}
        self._functions: dict[tuple[Any, bool], tuple[Spec | None, str]] = {}
        self._feed = list(pytree.tree_leaves(tuple(example_inputs))) if self._is_flat() else list(example_inputs)
        with torch.no_grad():
            for node in module.graph.nodes:
                if fix is not None:
                    fix(node, self.examples)
                self._read(node)
        for view in self.nodes:
            for value in view.inputs:
                value.uses.append(view)

    def read_more(self, node: fx.Node) -> Node:
        """Read a node that was put in after the walk; who uses what is not noted."""
        with torch.no_grad():
            self._read(node)
        return self.nodes[-1]

    def _is_flat(self) -> bool:
        """Whether placeholders are the leaves of the inputs (`torch.export`) rather than the arguments."""
        return isinstance(self.module.graph._codegen, fx.graph._PyTreeCodeGen)

    def _read(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self._read_placeholder(node)
        elif node.op == "get_attr":
            found = attribute(self.module, str(node.target))
            if isinstance(found, torch.Tensor):
                self.values[node] = self._param(str(node.target), found)
            else:
                self.examples[node], self.values[node] = found, None
        elif node.op == "output":
            self.outputs = self._flat(node.args[0])
            operands = {f"output_{index}": value for index, value in enumerate(self.outputs)}
            self.nodes.append(Node(node.name, "Output", operands, (), {}, "output", node, "output"))
        else:
            self._read_call(node)

    def _read_placeholder(self, node: fx.Node) -> None:
        if self._feed:
            example = self._feed.pop(0)
        elif node.args:
            example = node.args[0]
        else:
            raise GraphError(f"no example for the input {node.name!r}", remedy="Pass one example for each argument of forward.")
        self.examples[node] = map_tensors(example, meta)
        leaves = [0]

        def make(tensor: torch.Tensor) -> Value:
            leaves[0] += 1
            name = node.name if leaves[0] == 1 else f"{node.name}.{leaves[0] - 1}"
            return Value(name, tuple(tensor.shape), tensor.dtype)

        self.values[node] = map_tensors(example, make) if _holds_tensor(example) else None
        found = self._flat(node)
        view = Node(node.name, "Input", {}, tuple(found), {}, str(node.target), node, "input")
        for value in found:
            value.producer = view
        self.inputs += found
        self.nodes.append(view)

    def _param(self, path: str, tensor: torch.Tensor) -> Value:
        found = self.known.get(id(tensor))
        if found is None:
            name = self.names.get(id(tensor), path)
            found = self.known[id(tensor)] = self.params[name] = Value(name, tuple(tensor.shape), tensor.dtype, data=tensor.detach())
        return found

    def _example(self, arg: Any) -> Any:
        """An argument with example values in place of host nodes."""
        if isinstance(arg, fx.Node):
            return self.examples[arg]
        return arg if isinstance(arg, _PLAIN) else fx.map_arg(arg, self.examples.__getitem__)

    def _flat(self, arg: Any) -> list[Value]:
        """The tensor values in an argument, in order."""
        if isinstance(arg, _PLAIN):
            return []
        value = self.values.get(arg) if isinstance(arg, fx.Node) else None
        if isinstance(value, Value):
            return [value]
        found: list[Value] = []
        fx.map_arg(arg, lambda n: found.extend(v for v in pytree.tree_leaves(self.values.get(n)) if isinstance(v, Value)))
        return found

    def _read_call(self, node: fx.Node) -> None:
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        if module is None and self._is_nest(node):
            return
        spec, name = self._function(node) if module is None else (self._module_spec(module), module_callee(module))
        if spec is not None and "whole" in node.meta:
            spec, name = None, f"{name} (named in leaf=)"
        operands, given = self._bind(node, spec, module)
        op = spec.op if spec is not None else "Opaque"
        if given.get("transposed"):
            op = "ConvTranspose"
        view = Node(node.name, op, operands, (), {}, _location(node), node, name, target_of_write(name, operands, given), given)
        shape = infer_shape(spec, operands, given, name)
        if shape is not None and given.get("dtype") is None and not _is_complex(operands):
            self.values[node] = made = Value(node.name, shape, next(iter(operands.values())).dtype, view)
            view.outputs = (made,)
        else:
            example = self.examples[node] = self._run(node, module)
            if not _holds_tensor(example):
                return
            view.outputs = self._outputs(node, view, example)
        view.attrs = attributes(view, given, module)
        self.nodes.append(view)

    def _module_spec(self, module: nn.Module) -> Spec | None:
        """The operator of a module, looked up once a class. One with hooks computes what its class does not say."""
        if hooked(module):
            return None
        kind = type(module)
        if kind not in self._specs:
            self._specs[kind] = module_spec(module)
        return self._specs[kind]

    def _function(self, node: fx.Node) -> tuple[Spec | None, str]:
        """The operator of a function or method and its name in messages, looked up once."""
        second = node.args[1] if len(node.args) > 1 else None
        key = node.target, isinstance(second, fx.Node) and isinstance(self.values.get(second), Value)
        if key not in self._functions:
            self._functions[key] = (function_spec(node.target, pairwise=key[1]), callee(node.target))
        return self._functions[key]

    def _is_nest(self, node: fx.Node) -> bool:
        """Whether a function gives no tensor of its own but values that are there: a member of a tuple or dict, or a nest of them."""
        if node.target is getattr:
            return self._is_field(node)
        if getattr(node.target, "__name__", "") == "getitem" and node.op == "call_function":
            nest = self.values.get(node.args[0])  # type: ignore[arg-type]
            if isinstance(nest, tuple | list | dict):
                key = self._example(node.args[1])
                try:
                    self.examples[node], self.values[node] = self._example(node.args[0])[key], nest[key]
                except LookupError as error:
                    raise GraphError(
                        f"takes member {key!r} of {len(nest)}", where=_location(node), remedy="Edit the program's indices."
                    ) from error
                return True
        if isinstance(node.target, type) and _is_structure(node.target):  # a program's result in a class of its own
            args, kwargs = self._arguments(node)
            self.examples[node] = node.target(*args, **kwargs)
            look_into(self.examples[node])
            self.values[node] = node.target(*fx.map_arg(node.args, self.values.get), **fx.map_arg(node.kwargs, self.values.get))
            return True
        return False

    def _is_field(self, node: fx.Node) -> bool:
        """Whether an attribute is a member of a tuple under its name: `x.max(2).values`."""
        nest: Any = self.values.get(node.args[0])  # type: ignore[arg-type]
        name = str(node.args[1])
        if not isinstance(nest, tuple) or not hasattr(nest, name):
            return False
        self.examples[node], self.values[node] = getattr(self._example(node.args[0]), name), getattr(nest, name)
        return True

    def _arguments(self, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call with example values in place of host nodes."""
        return tuple(map(self._example, node.args)), {key: self._example(arg) for key, arg in node.kwargs.items()}

    def _outputs(self, node: fx.Node, view: Node, example: Any) -> tuple[Value, ...]:
        made: list[Value] = []

        def make(tensor: torch.Tensor) -> Value:
            made.append(Value(node.name if not made else f"{node.name}.{len(made)}", tuple(tensor.shape), tensor.dtype, view))
            return made[-1]

        self.values[node] = map_tensors(example, make)
        return tuple(made)

    def _bind(self, node: fx.Node, spec: Spec | None, module: nn.Module | None) -> tuple[dict[str, Value], dict[str, Any]]:
        """Split a call into tensor operands by role and other attributes by name."""
        operands: dict[str, Value] = {}
        attrs: dict[str, Any] = {}
        names = spec.arguments if spec is not None and module is None else ("input",)
        pairs = [(names[i].lstrip("*") if i < len(names) else f"arg{i}", raw) for i, raw in enumerate(node.args)]
        for name, raw in (*pairs, *node.kwargs.items()) if node.kwargs else pairs:
            if name == "self":
                name = "input"
            found = self._flat(raw)
            if operands and spec is not None and spec.op in _ONLY_TYPE:
                continue
            if len(found) == 1 and isinstance(raw, fx.Node) and name not in operands:
                operands[name] = found[0]
                continue
            arg = self._example(raw)
            if found:
                operands.update({f"{name}.{len(operands) + index}": value for index, value in enumerate(found)})
                attrs[name] = arg if not isinstance(arg, torch.Tensor | list | tuple) else None
            elif name in attrs:
                attrs[name] = (*(attrs[name] if isinstance(attrs[name], tuple) else (attrs[name],)), arg)
            else:
                attrs[name] = arg
        if spec is not None and spec.op == "Constant":
            self._count(node, operands, attrs)
        if module is not None:
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None and tensor.dim() > 0:
                    operands[name] = self._param(f"{node.target}.{name}", tensor)
            held = vars(module)  # `hasattr` on a module is slow where it fails
            if held.get("inplace"):
                attrs["inplace"] = True
            attrs.update(
                {name: getattr(module, name) for name in (spec.arguments if spec else ()) if name in held or hasattr(type(module), name)}
            )
        return operands, attrs

    def _count(self, node: fx.Node, operands: dict[str, Value], attrs: dict[str, Any]) -> None:
        """The tensors whose sizes a factory is given: `count.1` for axis 1 of what it makes, and there the (axis, multiple)."""
        for place, found in enumerate(counts_of(sizes_of(node)[2], self._rank)):
            value = self.values.get(found.tensor) if found is not None else None
            if found is not None and isinstance(value, Value):
                operands[f"{COUNT}{place}"] = value
                attrs[f"{COUNT}{place}"] = (found.axis % len(value.sizes), found.times)

    def _rank(self, node: fx.Node) -> int | None:
        value = self.values.get(node)
        return len(value.sizes) if isinstance(value, Value) and value.shape is not None else None

    def _stand_in(self, node: fx.Node, number: int) -> Any:
        """A constant's own data; for what is computed one number, or true for a mask, so that a selection by it has its largest size."""
        value = self.values.get(node)
        if isinstance(value, Value) and value.data is not None and not value.data.is_meta:
            return value.data
        return map_tensors(self.examples[node], lambda t: torch.full(t.shape, True if t.dtype == torch.bool else number, dtype=t.dtype))

    def _run(self, node: fx.Node, module: nn.Module | None) -> Any:
        """Run a node on the meta device; on real zeros where it refuses."""
        args, kwargs = self._arguments(node)
        try:
            if module is None:
                return map_tensors(call(self.module, node, args, kwargs), meta)
            return map_tensors(copy_module(module, empty_like).eval()(*args, **kwargs), meta)
        except Exception as error:
            for number in (0, 1):  # a window of zeros has no inverse transform, and ones are no place in a list of one
                with suppress(Exception):
                    return map_tensors(self._run_real(node, module, number), meta)
            raise GraphError(f"cannot run on the example's shapes: {str(error).splitlines()[0]}", where=_location(node), remedy="Pass example inputs that the model accepts.") from error  # fmt: skip

    def _run_real(self, node: fx.Node, module: nn.Module | None, number: int) -> Any:
        """Run a node on real tensors; what is computed is the same number everywhere."""
        args: Any = fx.map_arg(node.args, lambda leaf: self._stand_in(leaf, number))
        kwargs: Any = fx.map_arg(node.kwargs, lambda leaf: self._stand_in(leaf, number))
        return call(self.module, node, args, kwargs) if module is None else copy_module(module, _cloned).eval()(*args, **kwargs)


_ONLY_TYPE = frozenset({"To", "TypeAs"})
"""Of a second tensor these take the type and the device alone."""
COUNT = "count."
"""Role of an operand that a factory only takes a size of; the axis follows."""
_PLAIN = (int, float, str, bool, type(None))


def _is_complex(operands: Mapping[str, Value]) -> bool:
    """Whether what comes out may be real numbers, though complex ones go in."""
    return any(value.dtype is not None and value.dtype.is_complex for value in operands.values())


def _is_structure(kind: type) -> bool:
    return dataclasses.is_dataclass(kind) or kind is OrderedDict or (issubclass(kind, tuple) and hasattr(kind, "_fields"))


def _cloned(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of numbers: zeros where there are none yet, as while a program is sliced."""
    return torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor.clone()


def _holds_tensor(example: Any) -> bool:
    return bool(tensors_in(example))


def _location(node: fx.Node) -> str:
    """The module path of a host node; for a function the module that calls it."""
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack") or {}
    for path, *_ in reversed(list(stack.values())):
        if path:
            return f"{path} ({node.name})"
    return node.name
