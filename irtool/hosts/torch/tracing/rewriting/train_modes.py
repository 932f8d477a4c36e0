"""Mends what tracing froze, a `training` flag baked into a functional dropout or batch norm, and brings calls into one form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from irtool.hosts.torch.modules import attribute
from irtool.hosts.torch.reader import Reader
from irtool.hosts.torch.tracing.rewriting.call_form import normalize_calls
from irtool.hosts.torch.tracing.state.flags import Flag
from irtool.hosts.torch.tracing.state.sandbox import TraceNotes
from irtool.ir.graph import Value

_DROPOUTS: dict[str, type[nn.Module]] = {
    "dropout": nn.Dropout, "dropout1d": nn.Dropout1d, "dropout2d": nn.Dropout2d, "dropout3d": nn.Dropout3d, "feature_dropout": nn.Dropout2d, "alpha_dropout": nn.AlphaDropout,
    "feature_alpha_dropout": nn.FeatureAlphaDropout,
}  # fmt: skip


def follow_modes(
    module: fx.GraphModule, inputs: Sequence[Any], asides: TraceNotes | None, model: nn.Module | None = None
) -> fx.GraphModule:
    """Give functional dropout, stochastic depth and batch norm a module again, so that they follow `train()` and `eval()`.

    That is what a flag that came from `self.training` meant. A flag that the model's own code states stays as it states it.

    Args:
        module: the traced program, edited in place.
        inputs: the example inputs.
        asides: who decided by `self.training`; None for a tracer that cannot tell, where a flag that equals the module's mode
            is taken to come from it.
        model: what was traced; tells how its batch norms count, which no call says.
    """
    changed = [normalize_calls(module.graph)]
    calls = [(node, name) for node in module.graph.nodes if (name := _functional(node)) in _FLAGS]
    following_modes = [(node, name) for node, name in calls if _follows(module, node, name, asides)]
    following = {node for node, _ in following_modes}
    for node in module.graph.nodes:
        flags = [arg for arg in (*node.args, *node.kwargs.values()) if type(arg) is Flag]
        if flags:
            if node not in following:
                flags[0].asked()
            node.args, node.kwargs = (fx.node.map_aggregate(part, _plain) for part in (node.args, node.kwargs))
    shapes = Reader(module, inputs, None).values if any(name in _NORMS for _, name in following_modes) else {}
    held = dict(model.named_modules(remove_duplicate=False)) if model is not None else {}
    for node, name in following_modes:
        layer = held.get(_around(node))
        changed.append(_MENDERS.get(name, _replace_dropout)(module, node, name, shapes))
        if name == "batch_norm" and changed[-1] and isinstance(layer, nn.modules.batchnorm._BatchNorm):
            _count_as(module, node.meta["owner"], layer)
    if any(changed):
        module.graph.lint()
        module.recompile()
    return module


def _functional(node: fx.Node) -> str:
    name = getattr(node.target, "__name__", str(node.target)) if node.op == "call_function" else ""
    return name.split(".")[0]


def _plain(arg: Any) -> Any:
    return arg.plain if isinstance(arg, Flag) else arg


def _follows(module: fx.GraphModule, node: fx.Node, name: str, asides: TraceNotes | None) -> bool:
    """Whether a call's flag came from `self.training`, handed on or decided by."""
    flag, owner = _argument(node, *_FLAGS[name]), _around(node)
    if isinstance(flag, Flag):
        return True
    held = owner and next((child for path, child in module.named_modules() if path == owner), None)
    if flag is not (held or module).training:
        return False  # `not self.training`, or a probability that depends on the mode
    asked = owner or type(module).__name__
    if asides is not None and asked in asides.asked:
        asides.following_modes.add(asked)
    return asides is None or asked in asides.asked


def _around(node: fx.Node) -> str:
    """The path of the module whose forward makes a call; empty for the root."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def _mode(node: fx.Node, name: str) -> bool:
    return bool(_argument(node, *_FLAGS[name]))


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _replace(module: fx.GraphModule, node: fx.Node, path: str, new: nn.Module) -> bool:
    module.add_submodule(path, new)
    with module.graph.inserting_before(node):
        call = module.graph.call_module(path, (_argument(node, 0, "input", None),))
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    module.graph.erase_node(node)
    return True


def _replace_dropout(module: fx.GraphModule, node: fx.Node, name: str, shapes: Mapping[fx.Node, Any]) -> bool:
    p = _argument(node, 1, "p", 0.5)
    if not isinstance(p, int | float):
        return False
    return _replace(module, node, f"mended_{node.name}", _DROPOUTS[name](float(p)).train(_mode(node, name)))


def _replace_stochastic_depth(module: fx.GraphModule, node: fx.Node, name: str, shapes: Mapping[fx.Node, Any]) -> bool:
    from torchvision.ops import StochasticDepth

    p, mode = _argument(node, 1, "p", 0.0), _argument(node, 2, "mode", "row")
    return (
        _replace(module, node, f"mended_{node.name}", StochasticDepth(p, mode).train(_mode(node, name)))
        if isinstance(p, float) and not isinstance(mode, fx.Node)
        else False
    )


def _replace_rrelu(module: fx.GraphModule, node: fx.Node, name: str, shapes: Mapping[fx.Node, Any]) -> bool:
    lower, upper = (_argument(node, place, key, default) for place, key, default in ((1, "lower", 1 / 8), (2, "upper", 1 / 3)))
    return _replace(module, node, f"mended_{node.name}", nn.RReLU(lower, upper).train(_mode(node, name)))


def _replace_norm(module: fx.GraphModule, node: fx.Node, name: str, shapes: Mapping[fx.Node, Any]) -> bool:
    """Rebuild a layer with statistics over the same tensors. Argument order differs between torch.nn.functional and ATen."""
    aten = isinstance(node.target, torch._ops.OpOverload)
    order = ("weight", "bias", "running_mean", "running_var") if aten else ("running_mean", "running_var", "weight", "bias")
    nodes = {role: _argument(node, index + 1, role, None) for index, role in enumerate(order)}
    if any(n is not None and (not isinstance(n, fx.Node) or n.op != "get_attr") for n in nodes.values()) or nodes["running_mean"] is None:
        return False
    tensors: dict[str, Any] = {role: attribute(module, str(n.target)) if n is not None else None for role, n in nodes.items()}
    momentum, eps = _argument(node, 6, "momentum", 0.1), _argument(node, 7, "eps", 1e-5)
    read = shapes.get(_argument(node, 0, "input", None))
    rank = len(read.sizes) if isinstance(read, Value) else 4
    options = {} if name == "batch_norm" else {"track_running_stats": True}
    new = _NORMS[name].get(rank, _NORMS[name][4])(
        tensors["running_mean"].numel(), eps=eps, momentum=momentum, affine=tensors["weight"] is not None, device="meta", **options
    )
    for role, tensor in tensors.items():
        setattr(new, role, tensor)
    new.num_batches_tracked = torch.zeros((), dtype=torch.long)
    node.meta["owner"] = _owner(module, nodes, node)
    return _replace(module, node, node.meta["owner"], new.train(_mode(node, name)))


def _count_as(module: fx.GraphModule, path: str, layer: nn.modules.batchnorm._BatchNorm) -> None:
    """Let a batch norm average as the model's own does: without a momentum over all batches so far."""
    new: Any = module.get_submodule(path)
    new.momentum = layer.momentum
    if layer.num_batches_tracked is not None:
        new.num_batches_tracked = layer.num_batches_tracked


def _owner(module: fx.GraphModule, nodes: dict[str, Any], node: fx.Node) -> str:
    """The path of the module that holds the statistics, if the new module can take its place, else a new path."""
    paths = {str(n.target).rpartition(".")[0] for n in nodes.values() if n is not None}
    path = next(iter(paths)) if len(paths) == 1 else ""
    own = (
        path
        and not list(module.get_submodule(path).children())
        and all(str(n.target) == f"{path}.{role}" for role, n in nodes.items() if n)
    )
    return path if own else f"mended_{node.name}"


_MENDERS = {
    "dropout": _replace_dropout,
    "stochastic_depth": _replace_stochastic_depth,
    "batch_norm": _replace_norm,
    "instance_norm": _replace_norm,
    "rrelu": _replace_rrelu,
}
_NORMS: dict[str, dict[int, Any]] = {
    "batch_norm": {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d},
    "instance_norm": {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d},
}
"""The layers with statistics, by the rank of what they read."""
_FLAGS: dict[str, tuple[int, str, bool]] = {
    **{name: (2, "training", name.startswith("dropout")) for name in _DROPOUTS},
    "batch_norm": (5, "training", False),
    "instance_norm": (5, "use_input_stats", True),
    "rrelu": (3, "training", False),
    "stochastic_depth": (3, "training", True),
}
"""Training flags of functions: position, name, and value if left out."""
