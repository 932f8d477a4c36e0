"""Mends what tracing froze: a `training` flag baked into a functional dropout or batch norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from irtool.ir.fx_module import attribute

_DROPOUTS: dict[str, type[nn.Module]] = {
    "dropout": nn.Dropout, "dropout1d": nn.Dropout1d, "dropout2d": nn.Dropout2d, "dropout3d": nn.Dropout3d, "feature_dropout": nn.Dropout2d, "alpha_dropout": nn.AlphaDropout,
}  # fmt: skip


def mend(module: fx.GraphModule) -> fx.GraphModule:
    """Give functional dropout, stochastic depth and batch norm a module again, so that they follow `train()` and `eval()`.

    A call whose flag was a constant written in the model's own code cannot be told from a baked one; both end up
    following the module's mode, which is what `self.training` meant.
    """
    changed = False
    for node in list(module.graph.nodes):
        name = getattr(node.target, "__name__", str(node.target)) if node.op == "call_function" else ""
        name = name.split(".")[0]
        if name in _DROPOUTS or name in ("batch_norm", "stochastic_depth"):
            changed |= _MENDERS[name if name in _MENDERS else "dropout"](module, node, name)
    if changed:
        module.graph.lint()
        module.recompile()
    return module


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


def _mend_dropout(module: fx.GraphModule, node: fx.Node, name: str) -> bool:
    p = _argument(node, 1, "p", 0.5)
    if not isinstance(p, int | float):
        return False
    return _replace(module, node, f"mended_{node.name}", _DROPOUTS[name](float(p)).train(module.training))


def _mend_stochastic_depth(module: fx.GraphModule, node: fx.Node, name: str) -> bool:
    from torchvision.ops import StochasticDepth

    p, mode = _argument(node, 1, "p", 0.0), _argument(node, 2, "mode", "row")
    return (
        _replace(module, node, f"mended_{node.name}", StochasticDepth(p, mode).train(module.training))
        if isinstance(p, float) and not isinstance(mode, fx.Node)
        else False
    )


def _mend_batch_norm(module: fx.GraphModule, node: fx.Node, name: str) -> bool:
    """Rebuild `nn.BatchNorm` over the same tensors. Argument order differs between torch.nn.functional and ATen."""
    aten = isinstance(node.target, torch._ops.OpOverload)
    order = ("weight", "bias", "running_mean", "running_var") if aten else ("running_mean", "running_var", "weight", "bias")
    nodes = {role: _argument(node, index + 1, role, None) for index, role in enumerate(order)}
    if any(n is not None and (not isinstance(n, fx.Node) or n.op != "get_attr") for n in nodes.values()) or nodes["running_mean"] is None:
        return False
    tensors: dict[str, Any] = {role: attribute(module, str(n.target)) if n is not None else None for role, n in nodes.items()}
    momentum, eps = _argument(node, 6, "momentum", 0.1), _argument(node, 7, "eps", 1e-5)
    rank = len(node.args[0].meta["val"].shape) if isinstance(node.args[0], fx.Node) and "val" in node.args[0].meta else 4
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 5: nn.BatchNorm3d}.get(rank, nn.BatchNorm2d)
    new = kind(tensors["running_mean"].numel(), eps=eps, momentum=momentum, affine=tensors["weight"] is not None, device="meta")
    for role, tensor in tensors.items():
        if tensor is not None:
            setattr(new, role, tensor)
    new.num_batches_tracked = torch.zeros((), dtype=torch.long)
    return _replace(module, node, _owner(module, nodes, node), new.train(module.training))


def _owner(module: fx.GraphModule, nodes: dict[str, Any], node: fx.Node) -> str:
    """The path of the module that holds the statistics, if the new module can take its place, else a new path."""
    paths = {str(n.target).rpartition(".")[0] for n in nodes.values() if n is not None}
    path = next(iter(paths)) if len(paths) == 1 else ""
    return path if path and not list(module.get_submodule(path).children()) else f"mended_{node.name}"


_MENDERS = {"dropout": _mend_dropout, "stochastic_depth": _mend_stochastic_depth, "batch_norm": _mend_batch_norm}
