"""What of slicing is particular to torch: empty parameters on the meta device, literals, size attributes of modules."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from irtool.ir.fx_graph import FxGraph
from irtool.ir.fx_module import compiled, copy_module, modules_by_path
from irtool.planning.fx_literals import Literals
from irtool.planning.onnx_literals import Sizes


def resized(graph: FxGraph, shapes: Mapping[str, tuple[int, ...]], sizes: Sizes) -> tuple[FxGraph, list[str]]:
    """A copy of the graph for parameters of other shapes, these empty yet, and the names of the nodes that were edited."""

    def empty(name: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.clone()
        return torch.empty(shapes.get(name, tuple(tensor.shape)), dtype=tensor.dtype, device="meta")

    module = copy_module(graph.module, empty)
    edits = Literals(graph, module, sizes.shape, sizes.kept)
    edits.edit()
    for child in modules_by_path(module).values():
        sync_attributes(child)
    new = FxGraph(module, graph.example_inputs, tracer=graph.tracer, history=graph.history, fix=edits.fix_computed)
    if _freeze_scalars(graph, new):
        new.refresh()
    return new, edits.edited


def complete(source: FxGraph, new: FxGraph) -> None:
    """What nothing reads (an unused parameter) travels as it is; the code of the program is generated."""
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


def _freeze_scalars(before: FxGraph, after: FxGraph) -> bool:
    """A number computed from a pruned size (`x / x.size(1)`) keeps the value it had. True if the program changed."""
    old = {node.name: node for node in before.nodes}
    changed = False
    for node in after.nodes:
        was = old.get(node.name)
        if was is None or node.op in _SIZED or node.host.op not in ("call_function", "call_method"):
            continue
        host_args = list(node.host.args)
        for index, arg in enumerate(host_args):
            if hasattr(arg, "op") and not isinstance(after.examples[arg], torch.Tensor) and isinstance(after.examples[arg], int | float):
                value = before.examples[was.host.args[index]]
                if value != after.examples[arg]:
                    host_args[index] = value
                    changed = True
        node.host.args = tuple(host_args)
    if changed:
        after.module.recompile()
    return changed
