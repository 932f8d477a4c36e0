"""The torch host: reads a `torch.fx.GraphModule` into the view, and runs it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from irtool.errors import GraphError
from irtool.ir.fx_targets import Spec, callee, function_spec, module_spec
from irtool.ir.graph import Graph, Node, Value
from irtool.ir.modes import evaluating

Fix = Callable[[fx.Node, Mapping[fx.Node, Any]], None]


def map_tensors(structure: Any, function: Callable[[torch.Tensor], Any]) -> Any:
    """Apply `function` to every tensor in a nest of tuples, lists, dicts and dataclasses known to torch's pytree."""
    return pytree.tree_map(lambda leaf: function(leaf) if isinstance(leaf, torch.Tensor) else leaf, structure)


def look_into(example: Any) -> None:
    """Let torch's pytree see the fields of a dataclass that nobody registered with it, as it sees those of a tuple."""
    if dataclasses.is_dataclass(example) and not isinstance(example, type) and type(example) not in pytree.SUPPORTED_NODES:
        pytree.register_dataclass(type(example))


def copy_module(module: nn.Module, data: Callable[[str, torch.Tensor], torch.Tensor]) -> Any:
    """A copy of `module` whose parameters and buffers hold `data(name, old)`; sharing between names is kept.

    Only the tensors that `data` makes are allocated, so a copy on the meta device costs no memory for weights. The tree
    is copied by hand: `copy.deepcopy` spends most of its time on empty hook dictionaries.
    """
    memo: dict[int, Any] = {}
    for name, parameter in module.named_parameters():
        memo[id(parameter)] = nn.Parameter(data(name, parameter.detach()), requires_grad=parameter.requires_grad)
    for name, buffer in module.named_buffers():
        memo[id(buffer)] = data(name, buffer)
    if isinstance(module, fx.GraphModule):
        root = _copy_tree(module, memo, nn.Module())
        for name, held in module.__dict__.items():  # constants that are neither parameters nor buffers
            if isinstance(held, torch.Tensor):
                root.__dict__[name] = data(name, held)
        new = fx.GraphModule(root, copy.deepcopy(module.graph, memo), type(module).__name__)
        new.meta = dict(module.meta)
        new.training = module.training
        return new
    return _copy_tree(module, memo)


_SHARED = (int, float, str, bool, bytes, tuple, type(None), type, torch.dtype, torch.device)


def _copy_tree(module: nn.Module, memo: dict[int, Any], new: nn.Module | None = None) -> nn.Module:
    """A module and all below it; the same module in two places stays one."""
    if id(module) in memo:
        found: nn.Module = memo[id(module)]
        return found
    made = module.__class__.__new__(module.__class__) if new is None else new
    memo[id(module)] = made
    for key, value in module.__dict__.items() if new is None else ():
        if isinstance(value, _SHARED):
            made.__dict__[key] = value
        elif not value and isinstance(value, dict | set | list):
            made.__dict__[key] = type(value)()
        elif key not in ("_parameters", "_buffers", "_modules"):
            made.__dict__[key] = copy.deepcopy(value, memo)
    for slot in ("_parameters", "_buffers"):
        made.__dict__[slot] = {key: None if held is None else memo[id(held)] for key, held in module.__dict__[slot].items()}
    made.__dict__["_non_persistent_buffers_set"] = set(module._non_persistent_buffers_set)
    made.__dict__["_modules"] = {key: None if child is None else _copy_tree(child, memo) for key, child in module._modules.items()}
    return made


def empty_like(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """`meta` in the form that `copy_module` takes."""
    return meta(tensor)


class FxGraph(Graph):
    """A `Graph` over a `torch.fx.GraphModule`.

    Args:
        module: the program. It is shared, not copied; passes copy before they edit.
        example_inputs: the positional arguments the graph was traced with (tensors, or nests of them).
        tracer: which tracer served, for reports.
        history: the steps (JSON data) that made this graph out of the traced model, replayed by `load`.
        fix: called before each host node is read, with the example values so far; it may change the node's arguments.

    Raises:
        GraphError: the program cannot run on the shapes of the example inputs.
    """

    def __init__(self, module: fx.GraphModule, example_inputs: Sequence[Any], *, tracer: str = "symbolic", history: Sequence[Mapping[str, Any]] = (),
                 fix: Fix | None = None) -> None:  # fmt: skip
        self.module = module
        self.example_inputs = tuple(example_inputs)
        for example in self.example_inputs:
            look_into(example)
        self.tracer = tracer
        self.history: tuple[Mapping[str, Any], ...] = tuple(history)
        self.analyses: dict[str, Any] = {}
        """Results of analyses by name; they live as long as this graph, which never changes."""
        self.refresh(fix)

    def refresh(self, fix: Fix | None = None) -> None:
        """Read the host again after an edit."""
        self.analyses.clear()
        self._held: dict[int, list[tuple[dict[str, Any], str]]] = {}
        reader = _Reader(self.module, self.example_inputs, fix)
        self.nodes, self.inputs, self.outputs, self.params = tuple(reader.nodes), tuple(reader.inputs), tuple(reader.outputs), reader.params
        self.examples, self._values = reader.examples, reader.values

    def run(self, *inputs: Any) -> Any:
        """Run the graph in eval mode without gradients; train/eval flags are put back afterwards."""
        with evaluating(self.module), torch.no_grad():
            return self.module(*inputs)

    def clone(self, data: Callable[[torch.Tensor], torch.Tensor] = torch.clone) -> FxGraph:
        """A copy that shares nothing with this graph; `data` maps each parameter and buffer (a dtype change, say)."""
        module = copy_module(self.module, lambda name, tensor: data(tensor))
        return FxGraph(module, self.example_inputs, tracer=self.tracer, history=self.history)

    def to(self, dtype: torch.dtype) -> FxGraph:
        """A copy with all floating parameters, buffers and example inputs in another type (float64 for checks)."""

        def cast(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(dtype, copy=True) if tensor.is_floating_point() else tensor.clone()

        module = copy_module(self.module, lambda name, tensor: cast(tensor))
        return FxGraph(module, map_tensors(self.example_inputs, cast), tracer=self.tracer, history=self.history)

    def set_param(self, name: str, data: torch.Tensor) -> None:
        """Replace a parameter's or buffer's tensor everywhere it is used; the shape stays that of the view.

        Raises:
            GraphError: another shape; edit the host and `refresh` for that.
        """
        value = self.params[name]
        if tuple(data.shape) != value.shape:
            raise GraphError(f"shape {tuple(data.shape)} for {value.shape}", where=name, remedy="Edit the module and refresh().")
        old = attribute(self.module, name)
        new = nn.Parameter(data, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else data
        for slot, key in self._holders().get(id(old), []):
            slot[key] = new
        self._held[id(new)] = self._held.pop(id(old))
        value.data = new.detach()

    def _holders(self) -> dict[int, list[tuple[dict[str, Any], str]]]:
        """Where each tensor hangs in the module tree: shared parameters hang in several places."""
        if not self._held:
            for owner in self.module.modules():
                for slot in (owner._parameters, owner._buffers, owner.__dict__):
                    for key, held in slot.items():
                        if isinstance(held, torch.Tensor):
                            self._held.setdefault(id(held), []).append((slot, key))
        return self._held

    def value_of(self, node: fx.Node) -> Any:
        """The view's value (or nest of values) for a host node; None if it holds no tensor."""
        return self._values.get(node)

    def evaluate(self, node: Node, values: Mapping[Value, torch.Tensor]) -> Sequence[torch.Tensor]:
        """Run one node's own operator with other tensors in place of its inputs. Used on labels."""
        host: fx.Node = node.host

        def substitute(arg: fx.Node) -> Any:
            value = self._values.get(arg)
            if value is None:
                return self.examples[arg]
            return pytree.tree_map(lambda v: values[v] if v in values else v.data, value, is_leaf=lambda v: isinstance(v, Value))

        result = call(self.module, host, fx.map_arg(host.args, substitute), fx.map_arg(host.kwargs, substitute))
        return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]


def call(module: nn.Module, node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Execute one host node on given arguments."""
    if node.op == "call_module":
        return module.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def attribute(module: nn.Module, path: str) -> Any:
    """The object at a dotted path below `module`."""
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part)
    return found


def set_attribute(module: nn.Module, path: str, value: Any) -> None:
    """Set the object at a dotted path below `module`."""
    prefix, _, name = path.rpartition(".")
    setattr(module.get_submodule(prefix), name, value)


def meta(tensor: torch.Tensor) -> torch.Tensor:
    """An empty tensor of the same shape and type on the meta device."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


class _Reader:
    """One walk over the host: example values, shapes, and the view's nodes."""

    def __init__(self, module: fx.GraphModule, example_inputs: Sequence[Any], fix: Fix | None) -> None:
        self.module, self.example_inputs = module, example_inputs
        self.examples: dict[fx.Node, Any] = {}
        self.values: dict[fx.Node, Any] = {}
        self.nodes: list[Node] = []
        self.inputs: list[Value] = []
        self.outputs: list[Value] = []
        self.params: dict[str, Value] = {}
        self._by_tensor: dict[int, Value] = {}
        self._names: dict[int, str] = {}
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            self._names.setdefault(id(tensor), name)
        self._feed = list(pytree.tree_leaves(tuple(example_inputs))) if self._is_flat() else list(example_inputs)
        with torch.no_grad():
            for node in module.graph.nodes:
                if fix is not None:
                    fix(node, self.examples)
                self._read(node)
        for view in self.nodes:
            for value in view.inputs:
                value.uses.append(view)

    def _is_flat(self) -> bool:
        """Whether placeholders are the leaves of the inputs (`torch.export`) rather than the arguments."""
        return isinstance(self.module.graph._codegen, fx.graph._PyTreeCodeGen)

    def _read(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self._read_placeholder(node)
        elif node.op == "get_attr":
            found = attribute(self.module, str(node.target))
            self.examples[node] = meta(found) if isinstance(found, torch.Tensor) else found
            self.values[node] = self._param(str(node.target), found) if isinstance(found, torch.Tensor) else None
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
        name = self._names.get(id(tensor), path)
        if id(tensor) not in self._by_tensor:
            self._by_tensor[id(tensor)] = self.params[name] = Value(name, tuple(tensor.shape), tensor.dtype, data=tensor.detach())
        return self._by_tensor[id(tensor)]

    def _flat(self, arg: Any) -> list[Value]:
        """The tensor values in an argument, in order."""
        found: list[Value] = []
        fx.map_arg(arg, lambda n: found.extend(v for v in pytree.tree_leaves(self.values.get(n)) if isinstance(v, Value)))
        return found

    def _read_call(self, node: fx.Node) -> None:
        args, kwargs = fx.map_arg(node.args, self.examples.__getitem__), fx.map_arg(node.kwargs, self.examples.__getitem__)
        module = self.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        spec = module_spec(module) if module is not None else function_spec(node.target, args)
        inputs = self._flat((node.args, node.kwargs))
        if self._is_selection(node, args):
            self.examples[node] = args[0][args[1]]
            self.values[node] = self.values[node.args[0]][args[1]]  # type: ignore[index]
            return
        if dataclasses.is_dataclass(node.target):  # a program's result in a class of its own: a nest of values, not an operator
            self.examples[node] = node.target(*args, **kwargs)
            look_into(self.examples[node])
            self.values[node] = node.target(*fx.map_arg(node.args, self.values.get), **fx.map_arg(node.kwargs, self.values.get))
            return
        operands, attrs = self._bind(node, spec, module, args, kwargs)
        shaped = _infer_shape(spec, operands, attrs)
        example = meta_like(shaped, operands) if shaped is not None else self._run(node, module, args, kwargs)
        self.examples[node] = example
        if not _holds_tensor(example):
            return
        if not inputs and module is None and spec is None and isinstance(example, torch.Size):
            return
        op = spec.op if spec is not None else "Opaque"
        name = str(node.target) if module is not None else callee(node.target)
        view = Node(node.name, op, operands, (), attrs, _location(node), node, type(module).__name__ if module is not None else name)
        view.outputs = self._outputs(node, view, example)
        self.nodes.append(view)

    def _is_selection(self, node: fx.Node, args: Sequence[Any]) -> bool:
        """Whether the node picks a member of a tuple or dict of values: an alias, not an operator."""
        is_getitem = node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem"
        return is_getitem and isinstance(self.values.get(node.args[0]), tuple | list | dict)  # type: ignore[arg-type]

    def _outputs(self, node: fx.Node, view: Node, example: Any) -> tuple[Value, ...]:
        made: list[Value] = []

        def make(tensor: torch.Tensor) -> Value:
            made.append(Value(node.name if not made else f"{node.name}.{len(made)}", tuple(tensor.shape), tensor.dtype, view))
            return made[-1]

        self.values[node] = map_tensors(example, make)
        return tuple(made)

    def _bind(self, node: fx.Node, spec: Spec | None, module: nn.Module | None, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[dict[str, Value], dict[str, Any]]:  # fmt: skip
        """Split a call into tensor operands by role and other attributes by name."""
        operands: dict[str, Value] = {}
        attrs: dict[str, Any] = {}
        names = spec.arguments if spec is not None and module is None else ("input",)
        pairs = [(names[i] if i < len(names) else f"arg{i}", raw, arg) for i, (raw, arg) in enumerate(zip(node.args, args, strict=True))]
        pairs += [(key, node.kwargs[key], kwargs[key]) for key in node.kwargs]
        for name, raw, arg in pairs:
            name = name.lstrip("*")
            if name == "self":
                name = "input"
            found = self._flat(raw)
            if len(found) == 1 and isinstance(raw, fx.Node) and name not in operands:
                operands[name] = found[0]
            elif found:
                operands.update({f"{name}.{len(operands) + index}": value for index, value in enumerate(found)})
                attrs[name] = arg if not isinstance(arg, torch.Tensor | list | tuple) else None
            elif name in attrs:
                attrs[name] = (*(attrs[name] if isinstance(attrs[name], tuple) else (attrs[name],)), arg)
            else:
                attrs[name] = arg
        if module is not None:
            for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is not None and tensor.dim() > 0:
                    operands[name] = self._param(f"{node.target}.{name}", tensor)
            attrs.update({name: getattr(module, name) for name in (spec.arguments if spec else ()) if hasattr(module, name)})
        return operands, attrs

    def _run(self, node: fx.Node, module: nn.Module | None, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run a node on the meta device; on real zeros where it refuses."""
        try:
            if module is None:
                return map_tensors(call(self.module, node, args, kwargs), meta)
            return map_tensors(copy_module(module, empty_like).eval()(*args, **kwargs), meta)
        except Exception as error:
            try:
                real = [map_tensors(arg, lambda t: torch.zeros(t.shape, dtype=t.dtype)) for arg in (tuple(args), dict(kwargs))]
                return map_tensors(
                    call(self.module, node, real[0], real[1]) if module is None else copy.deepcopy(module).eval()(*real[0], **real[1]), meta
                )
            except Exception:
                raise GraphError(f"cannot run on the example's shapes: {str(error).splitlines()[0]}", where=_location(node), remedy="Pass example inputs that the model accepts.") from error  # fmt: skip


def _holds_tensor(example: Any) -> bool:
    return isinstance(example, torch.Tensor) or any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(example))


def _location(node: fx.Node) -> str:
    """The module path of a host node; for a function the module that calls it."""
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack") or {}
    for path, *_ in reversed(list(stack.values())):
        if path:
            return f"{path} ({node.name})"
    return node.name


def meta_like(shape: tuple[int, ...], operands: Mapping[str, Value]) -> torch.Tensor:
    """A meta tensor of `shape` with the element type of the first operand."""
    return torch.empty(shape, dtype=next(iter(operands.values())).dtype, device="meta")


def _infer_shape(spec: Spec | None, operands: Mapping[str, Value], attrs: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The output shape where a formula is at hand; None where the operator must be run."""
    rule = SHAPES.get(spec.shape) if spec is not None else None
    return rule(operands, attrs) if rule is not None and operands else None


def _same(operands: Mapping[str, Value], attrs: Mapping[str, Any]) -> tuple[int, ...]:
    return next(iter(operands.values())).sizes


def _same_value(operands: Mapping[str, Value], attrs: Mapping[str, Any]) -> tuple[int, ...]:
    return (*operands["input"].sizes[:-1], operands["value"].sizes[-1]) if "value" in operands else _same(operands, attrs)


def _broadcast(operands: Mapping[str, Value], attrs: Mapping[str, Any]) -> tuple[int, ...] | None:
    shapes = [value.sizes for value in operands.values()]
    if len({value.dtype for value in operands.values()}) > 1:
        return None
    return tuple(torch.broadcast_shapes(*shapes)) if any(shape != shapes[0] for shape in shapes) else shapes[0]


def _linear(operands: Mapping[str, Value], attrs: Mapping[str, Any]) -> tuple[int, ...] | None:
    x, weight = operands["input"].sizes, operands.get("weight")
    if weight is None or x[-1] != weight.sizes[-1]:
        return None
    return (*x[:-1], *weight.sizes[:-1])


def _conv(operands: Mapping[str, Value], attrs: Mapping[str, Any]) -> tuple[int, ...] | None:
    """floor((in + 2*padding - dilation*(kernel-1) - 1) / stride) + 1 (torch.nn.Conv2d's documentation)."""
    x, weight = operands["input"].sizes, operands["weight"].sizes
    n = len(weight) - 2
    stride, padding, dilation = (_spread(attrs.get(name, default), n) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1)))
    if stride is None or padding is None or dilation is None or len(x) != len(weight) or x[1] != weight[1] * (attrs.get("groups") or 1):
        return None
    spatial = ((x[i + 2] + 2 * padding[i] - dilation[i] * (weight[i + 2] - 1) - 1) // stride[i] + 1 for i in range(n))
    return (x[0], weight[0], *spatial)


def _spread(value: Any, n: int) -> tuple[int, ...] | None:
    if isinstance(value, int):
        return (value,) * n
    if isinstance(value, tuple | list) and all(isinstance(item, int) for item in value):
        return tuple(value) * n if len(value) == 1 else tuple(value)
    return None


def _concat(operands: Mapping[str, Value], attrs: Mapping[str, Any]) -> tuple[int, ...] | None:
    shapes, dim = [value.sizes for value in operands.values()], attrs.get("dim", 0)
    if not isinstance(dim, int) or len({len(shape) for shape in shapes}) > 1 or len({value.dtype for value in operands.values()}) > 1:
        return None
    axis = dim % len(shapes[0])
    return tuple(sum(shape[d] for shape in shapes) if d == axis else size for d, size in enumerate(shapes[0]))


def _adaptive(operands: Mapping[str, Value], attrs: Mapping[str, Any]) -> tuple[int, ...] | None:
    x, size = operands["input"].sizes, attrs.get("output_size")
    return (*x[: len(x) - len(size)], *size) if isinstance(size, tuple) and all(isinstance(s, int) for s in size) else None


SHAPES: dict[str, Callable[[Mapping[str, Value], Mapping[str, Any]], tuple[int, ...] | None]] = {
    "same": _same, "same_value": _same_value, "broadcast": _broadcast, "linear": _linear, "conv": _conv, "concat": _concat, "adaptive": _adaptive,
}  # fmt: skip
