"""Trying out a program that came from a file, so that a damaged or harmful one fails when it is loaded and not when it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from irtool.archive.allowed import NotData, Refused, call_row, row_of
from irtool.archive.kinds import Row, is_plain, is_sequence, is_tensor, show
from irtool.archive.limits import PARTS, TRIED_BYTES, Budget, bytes_of
from irtool.archive.operators import ATTRIBUTES
from irtool.errors import GraphError
from irtool.hosts.torch.graph import FxGraph
from irtool.hosts.torch.modules import call, copy_module, empty_like, meta, modules_by_path
from irtool.hosts.torch.operators import Spec
from irtool.hosts.torch.reader import Reader
from irtool.nests import map_tensors

_META = torch.device("meta")


class Trial(Reader):
    """A reading that knows no operator and no formula for a shape, so that torch runs each node once and checks all its arguments.

    Before a node runs, its arguments are held against the table of operators (irtool/archive/operators.py), by what they are
    and not by what the file calls them; after it ran, its result must be made of tensors and plain values. Nodes run on the
    meta device, where there is nothing to compute and no memory is taken; on zeros where an operator refuses that.

    Raises:
        Refused: a node calls or gives what the tables do not have, or asks for too much.
        GraphError: a node that takes other arguments than they say, or that cannot run; the text names it.
    """

    def __init__(self, module: fx.GraphModule, example_inputs: Sequence[Any]) -> None:
        self.budget = Budget()
        super().__init__(module, example_inputs, None)

    def _module_spec(self, module: nn.Module) -> Spec | None:
        return None

    def _function(self, node: fx.Node) -> tuple[Spec | None, str]:
        return None, ""

    def _read(self, node: fx.Node) -> None:
        super()._read(node)
        if node.op == "get_attr" and not isinstance(self.examples[node], torch.Tensor):
            raise Refused(f"reads {str(node.target)!r}, which is no tensor")

    def _read_call(self, node: fx.Node) -> None:
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        args, kwargs = self._arguments(node)
        name = check_call(node, module, args, kwargs, self.budget)
        self._called, self._made = (args, kwargs), False
        super()._read_call(node)
        result = self.examples[node]
        if not is_plain(result) and not (node.target is getattr and type(result) is str):
            raise Refused(f"makes {show(result)} in {node.name}, which is no tensor and no plain value")
        self.budget.check_result(result, self._made)
        self.budget.check_growth(node, name, args, result)

    def _run(self, node: fx.Node, module: nn.Module | None) -> Any:
        args, kwargs = self._called
        if module is None and node.op == "call_function" and _makes(node.target):
            self._made = True
            try:
                return call(self.module, node, args, {**kwargs, "device": _META})
            except Exception as error:
                raise _cannot(node, error) from error
        if node.target == "cpu":
            return args[0]
        try:
            if module is not None:
                return map_tensors(copy_module(module, empty_like).eval()(*args, **kwargs), meta)
            return map_tensors(call(self.module, node, _on_meta(args), {key: _on_meta(value) for key, value in kwargs.items()}), meta)
        except Exception as error:
            if sum(map(_bytes, (*args, *kwargs.values()))) > TRIED_BYTES:
                raise _cannot(node, error) from error
            return super()._run(node, module)


def check_program(graph: FxGraph) -> None:
    """Hold a graph that is to be saved against the tables, so that whatever is saved loads.

    Raises:
        NotData: a call that no archive holds; the text names the node.
    """
    modules, budget = modules_by_path(graph.module), Budget()
    for node in graph.module.graph.nodes:
        if node.op in ("call_function", "call_method", "call_module"):
            args, kwargs = (fx.map_arg(part, graph.examples.__getitem__) for part in (node.args, node.kwargs))
            try:
                name = check_call(node, modules[str(node.target)] if node.op == "call_module" else None, args, kwargs, budget)
                budget.check_growth(node, name, args, graph.examples[node])
            except Refused as error:
                raise NotData(str(error)) from error
            except GraphError as error:
                raise NotData(f"{error.where} {error.what}, which no archive holds") from error


def check_call(node: fx.Node, module: nn.Module | None, args: Sequence[Any], kwargs: Mapping[str, Any], budget: Budget) -> str:
    """Hold a call against the tables. Returns the operator's name.

    Raises:
        Refused: it is not in them, or asks for too much.
        GraphError: it takes other arguments.
    """
    target: Any = node.target
    if target is getattr:
        _check_attribute(args, kwargs)
    row = row_of(target) if module is None else call_row(module)
    said = row.refusal(args, kwargs)
    if said is None and node.op == "call_method" and not is_tensor(args[0] if args else None):
        said = "no tensor that has it"
    if said is None and isinstance(module, nn.RNNBase):
        said = _misshapen(module)
    if said is not None:
        raise GraphError(
            f"calls {_name(target) if module is None else type(module).__name__} with {said}", where=node.name, remedy="Save it again."
        )
    name = "" if module is not None else _name(target)
    budget.check_call(name, row.bound(args, kwargs), args, module)
    if module is None:
        _check_literals(node, name, row)
    return name


def _check_literals(node: fx.Node, name: str, row: Row) -> None:
    """Windows are given as numbers: one that grows with the input was never tried out, and torch does not check all that it adds up."""
    literal = _WINDOW | {"kernel_size"} if name in _UNFOLDING and node.op == "call_function" else _WINDOW
    for argument, value in row.bound(node.args, node.kwargs).items():
        if argument in literal and any(isinstance(leaf, fx.Node) for leaf in pytree.tree_leaves(value)):
            raise Refused(f"computes the {argument} of {name} while it runs")


_WINDOW = frozenset({"stride", "padding", "dilation", "output_padding"})
_UNFOLDING = frozenset({"unfold", "fold", "im2col", "col2im"})


def _misshapen(module: nn.RNNBase) -> str | None:
    """Name a recurrent layer's weight of another shape than its sizes say, beyond whose end torch would read; None if none is."""
    width, factor = module.hidden_size, _GATES.get((type(module), module.mode), 0)
    out = module.proj_size or width
    directions = 2 if module.bidirectional else 1
    if not factor or width < 1 or not 0 <= module.proj_size < width or not 1 <= module.num_layers <= PARTS:
        return f"sizes that no {type(module).__name__} has"
    if len(module._all_weights) != module.num_layers * directions or [name for names in module._all_weights for name in names] != list(module._flat_weights_names):  # fmt: skip
        return "another number of weights than it has layers"
    names = iter(module._flat_weights_names)
    for layer in range(module.num_layers):
        for direction in range(directions):
            entering = module.input_size if layer == 0 else out * directions
            shapes: dict[str, tuple[int, ...]] = {"weight_ih": (factor * width, entering), "weight_hh": (factor * width, out)}
            shapes |= {"bias_ih": (factor * width,), "bias_hh": (factor * width,)} if module.bias else {}
            shapes |= {"weight_hr": (out, width)} if module.proj_size else {}
            for part, shape in shapes.items():
                wanted = f"{part}_l{layer}{'_reverse' if direction else ''}"
                weight: Any = getattr(module, wanted, None)
                if next(names, None) != wanted or not is_tensor(weight) or tuple(weight.shape) != shape or not weight.is_floating_point():
                    return f"a weight {wanted} of another shape than its sizes say"
    return None if next(names, None) is None else "more weights than it has layers"


_GATES = {(nn.LSTM, "LSTM"): 4, (nn.GRU, "GRU"): 3, (nn.RNN, "RNN_TANH"): 1, (nn.RNN, "RNN_RELU"): 1}
"""How many rows of a weight there are for each hidden channel."""


def _check_attribute(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    kind = "tensor" if args and is_tensor(args[0]) else "device" if args and isinstance(args[0], torch.device) else "result"
    if (
        kwargs
        or len(args) != 2
        or type(args[1]) is not str
        or args[1] not in ATTRIBUTES[kind]
        or (kind == "result" and not is_sequence(args[0]))
    ):
        raise Refused(f"reads the attribute {show(args[1] if len(args) > 1 else None)} of {show(args[0]) if args else 'nothing'}")


def _name(target: Any) -> str:
    """Return an operator's name, wherever it is found."""
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.partition("::")[2]
    return target if isinstance(target, str) else str(getattr(target, "__name__", target))


def _makes(target: Any) -> bool:
    """Whether a function makes tensors out of numbers alone."""
    if isinstance(target, torch._ops.OpOverload):
        names = {argument.name: str(argument.type) for argument in target._schema.arguments}
        return "device" in names and "Tensor" not in names.values()
    return target in _MAKERS


_MAKERS = frozenset({
    torch.zeros, torch.ones, torch.full, torch.arange, torch.linspace, torch.logspace, torch.eye, torch.rand, torch.randn, torch.tensor,
    torch.scalar_tensor, torch.hann_window, torch.hamming_window, torch.blackman_window, torch.bartlett_window, torch.kaiser_window,
    torch.fft.fftfreq, torch.fft.rfftfreq,
})  # fmt: skip


def _on_meta(value: Any) -> Any:
    """An argument, with the meta device in place of any other."""
    if isinstance(value, torch.device) or (type(value) is str and value == "cpu"):
        return _META
    return tuple(map(_on_meta, value)) if type(value) is tuple else value


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return bytes_of(value.shape, value.dtype)
    return sum(map(_bytes, value)) if is_sequence(value) else 0


def _cannot(node: fx.Node, error: Exception) -> GraphError:
    text = next(iter(str(error).splitlines()), type(error).__name__)
    return GraphError(f"cannot run on the example's shapes: {text}", where=node.name, remedy="Save it again.")
