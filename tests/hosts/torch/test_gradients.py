"""Gradients of what nodes read."""

from __future__ import annotations

import gc
import weakref

import torch
from torch import nn

import irtool


def test_nothing_of_a_backward_run_is_held() -> None:
    graph = irtool.trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.zeros(2, 4))
    found: list[weakref.ref[torch.Tensor]] = []

    def loss(outputs: torch.Tensor) -> torch.Tensor:
        found.append(weakref.ref(outputs))
        return outputs.square().sum()

    reads = [(node, node.input) for node in graph.nodes if node.op == "Gemm"]
    seen: list[str] = []
    assert graph.backward(reads, (torch.randn(2, 4),), loss, lambda name, read, gradient: seen.append(name))
    assert len(seen) == len(reads) == 2
    gc.collect()
    assert found[0]() is None
