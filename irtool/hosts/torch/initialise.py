"""First values for the weights of a torch graph, as its layers have them before training."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from irtool.hosts.torch.graph import FxGraph


def initialise(graph: FxGraph, seed: int) -> list[str]:
    """Give every parameter a new first value, in place; returns the names of those that keep the old one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        restarted = {id(tensor) for module in graph.module.modules() for tensor in _reset(module)}
        left = []
        for name, parameter in graph.module.named_parameters():
            if id(parameter) in restarted:
                continue
            if parameter.dim() < 2 or not _is_weight(graph, name):
                left.append(name)
            else:  # a functional call's weight: as torch's own convolutions and linear layers begin
                nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
    return left


def _reset(module: nn.Module) -> Collection[Tensor]:
    """Call a module's own initialisation, if it has one; returns the parameters that are its own."""
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if not callable(reset):
        return ()
    reset()
    return tuple(module.parameters(recurse=False))


def _is_weight(graph: FxGraph, name: str) -> bool:
    value = graph.params.get(name)
    return value is not None and any(node.get("weight") is value and node.op in ("Conv", "ConvTranspose", "Gemm") for node in value.uses)
