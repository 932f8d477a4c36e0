"""Slicing of a torch program: empty parameters on the meta device, literals, size attributes of modules."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from irtool.hosts.torch.modules import compiled, copy_module, modules_by_path
from irtool.hosts.torch.sizes.arguments import torch_name
from irtool.hosts.torch.sizes.literals import SizeEdits
from irtool.hosts.torch.sizes.views import keep_axes_apart
from irtool.hosts.torch.sizes.write_attrs import OWN, WRITERS
from irtool.ir.sizes import Sizes

if TYPE_CHECKING:
    from irtool.hosts.torch.graph import FxGraph


def resized(graph: FxGraph, shapes: Mapping[str, tuple[int, ...]], sizes: Sizes) -> tuple[FxGraph, list[str]]:
    """A copy of the graph for parameters of other shapes, these empty yet, and the names of the nodes that were edited."""

    def empty(name: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() and name not in shapes:
            return tensor.clone()
        return torch.empty(shapes.get(name, tuple(tensor.shape)), dtype=tensor.dtype, device="meta")

    module = copy_module(graph.module, empty)
    edits = SizeEdits(graph, module, sizes)
    edits.edit(WRITERS, OWN)
    notes = keep_axes_apart(graph.nodes, module, sizes.shape)
    for child in modules_by_path(module).values():
        sync_attributes(child)
    new = type(graph)(module, graph.example_inputs, tracer=graph.tracer, history=graph.history, fix=edits.fix_computed)
    new.notes = tuple(notes)
    if _freeze_scalars(graph, new):
        new.refresh()
    return new, edits.edited


def complete(source: FxGraph, new: FxGraph) -> None:
    """Copy parameters that no node reads as they are, and generate the code of the program."""
    held = modules_by_path(source.module)
    for path, module in modules_by_path(new.module).items():
        for slot in (module._parameters, module._buffers):
            for name, tensor in slot.items():
                if tensor is not None and tensor.is_meta:
                    _assign(new.module, f"{path}.{name}" if path else name, getattr(held[path], name).detach().clone())
    compiled(new.module)


def _assign(module: nn.Module, name: str, data: Tensor) -> None:
    prefix, _, leaf = name.rpartition(".")
    owner = module.get_submodule(prefix)
    old = getattr(owner, leaf)
    setattr(owner, leaf, nn.Parameter(data, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else data)


_SIZES: tuple[tuple[type | tuple[type, ...], dict[str, tuple[str, int]]], ...] = (
    (nn.Linear, {"out_features": ("weight", 0), "in_features": ("weight", 1)}),
    (nn.Embedding, {"embedding_dim": ("weight", 1)}),
    ((nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm), {"num_features": ("running_mean", 0)}),
    (nn.GroupNorm, {"num_channels": ("weight", 0)}),
    (nn.PReLU, {"num_parameters": ("weight", 0)}),
    (nn.RNNBase, {"input_size": ("weight_ih_l0", 1)}),
)


def sync_attributes(module: nn.Module) -> None:
    """Make a module's size attributes (`out_channels` ...) say what its parameters are."""
    if isinstance(module, nn.modules.conv._ConvNd):
        transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
        first, second = module.weight.shape[0], module.weight.shape[1] * module.groups
        module.in_channels, module.out_channels = (first, second) if transposed else (second, first)
        return
    if isinstance(module, nn.RNNBase):
        module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]
    for classes, sizes in _SIZES if module._parameters else ():
        if isinstance(module, classes):
            for name, (parameter, axis) in sizes.items():
                held = getattr(module, parameter, None)
                held = held if held is not None else getattr(module, "weight", None)
                if held is not None:
                    setattr(module, name, held.shape[axis])


_SIZED = frozenset({"Reshape", "Expand", "Split", "Slice", "Gather", "Pad", "ChannelSelect", "Transpose", "Concat", "LayerNormalization", "RMSNormalization", "GroupNormalization", "Conv", "ConvTranspose", "Attention", "Input", "Output"})  # fmt: skip

_MAKERS = frozenset("zeros ones empty rand randn new_zeros new_ones new_empty".split())
"""Functions that take numbers for sizes alone, one by one."""


_LISTING = frozenset({"tensor", "as_tensor", "max", "min"})
"""Functions that take lists of numbers that are no sizes."""


def _freeze_scalars(before: FxGraph, after: FxGraph) -> bool:
    """A number computed from a pruned size (`x / x.size(1)`) keeps the value it had. True if the program changed."""
    old = {node.name: node for node in before.nodes}
    restate = _Restate({host.name: before.examples[host] for host in before.module.graph.nodes if _is_number(before.examples, host)}, after)
    for node in after.nodes:
        host = node.host
        if node.name in old and node.op not in _SIZED and host.op in ("call_function", "call_method") and torch_name(host) not in _MAKERS:
            if torch_name(host) in _LISTING:
                host.args = fx.map_arg(host.args, restate.for_reader(host))
            host.args = tuple(restate(arg, host) if isinstance(arg, fx.Node) else arg for arg in host.args)
            host.kwargs = {key: restate(arg, host) if isinstance(arg, fx.Node) else arg for key, arg in host.kwargs.items()}
    if restate.changed:
        after.module.recompile()
    return restate.changed


def _is_number(examples: Mapping[fx.Node, Any], host: fx.Node) -> bool:
    """Whether a host node computes a number rather than a tensor."""
    held = dict.get(examples, host) if isinstance(examples, dict) else None  # not asked for: that would make a tensor
    return isinstance(held, int | float) and not isinstance(held, bool)


@dataclass
class _Restate:
    """Numbers as they were before slicing, computed anew where they depend on what does not change (the image's size).

    A size of a pruned axis is a constant. A count of elements is a multiple of what it was. What is computed from these
    is computed from them as restated, in nodes of its own: others may read the number as it is.
    """

    before: Mapping[str, Any]
    after: FxGraph
    changed: bool = False
    _made: dict[fx.Node, Any] = field(default_factory=dict)

    def for_reader(self, reader: fx.Node) -> Callable[[fx.Node], Any]:
        """Map a reader's arguments, one by one."""
        return lambda arg: self(arg, reader)

    def __call__(self, arg: fx.Node, reader: fx.Node) -> Any:
        """The argument that `reader` is to have in place of `arg`."""
        was = self.before.get(arg.name)
        if was is None or not _is_number(self.after.examples, arg) or was == self.after.examples[arg]:
            return arg
        if arg not in self._made:
            self._made[arg] = self._restated(arg, was)
            self.changed = True
        return self._made[arg]

    def _restated(self, arg: fx.Node, was: Any) -> Any:
        graph, now = self.after.module.graph, self.after.examples[arg]
        with graph.inserting_after(arg):
            if arg.target in _COUNTS:
                common = math.gcd(was, now)
                product = graph.call_function(operator.mul, (arg, was // common))
                with graph.inserting_after(product):
                    return graph.call_function(operator.floordiv, (product, now // common))
            known = all(item.name in self.before for item in arg.all_input_nodes)
            if known and callable(arg.target) and getattr(arg.target, "__module__", "") in _ARITHMETIC:
                args = fx.map_arg(arg.args, self.for_reader(arg))
                used: list[fx.Node] = []
                fx.map_arg(args, used.append)
                last = max(used, default=None, key=list(graph.nodes).index)
                with graph.inserting_after(last if last is not None else arg):
                    return graph.call_function(arg.target, args, arg.kwargs)
        return was


_COUNTS = ("numel", "nelement", math.prod)
"""Functions that count elements: of a tensor, or of some of its axes."""
_ARITHMETIC = frozenset({"_operator", "operator", "math", "builtins"})
