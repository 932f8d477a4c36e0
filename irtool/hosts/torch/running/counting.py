"""Multiply-accumulates of operators that irtool has no formula for, counted by torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from irtool.hosts.torch.modules import copy_module, empty_like
from irtool.ir.graph import Node

if TYPE_CHECKING:
    from irtool.hosts.torch.graph import FxGraph


def counted_macs(graph: FxGraph, node: Node) -> int | None:
    """MACs of an operator, by torch's counter on the meta device; None where it does not run there."""
    inputs = {value: torch.empty(value.sizes, dtype=value.dtype, device="meta") for value in node.inputs}
    try:
        # Attention is a matrix product or two only in its plain form; the fused kernels are not all in the counter's table.
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            if node.host.op == "call_module":
                args, kwargs = (fx.map_arg(part, graph.examples.__getitem__) for part in (node.host.args, node.host.kwargs))
                copy_module(graph.module.get_submodule(str(node.host.target)), empty_like).eval()(*args, **kwargs)
            else:
                graph.evaluate(node, inputs)
    except Exception:  # whatever a foreign operator raises on tensors without data
        return None
    return counter.get_total_flops() // 2
