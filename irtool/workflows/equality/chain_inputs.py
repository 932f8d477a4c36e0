"""Inputs of the chain of equality: images, or noise of sizes that the graph takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from irtool.ir.graph import Graph
from irtool.nests import map_tensors


def chain_inputs(example: tuple[Any, ...], images: Tensor | None = None, *, batch: int = 8, seed: int = 0) -> tuple[Any, ...]:
    """Choose what to run the chain on: real images if there are some, else normal noise of the example's shapes.

    Args:
        example: the inputs that the graph was traced with.
        images: float32 (N, C, H, W), used where the graph has one input.
        batch: samples of noise, where the example's first axis is a batch; inputs that are not floats stay as they are.
        seed: of the noise.
    """
    if images is not None and len(example) == 1:
        return (images,)
    generator = torch.Generator().manual_seed(seed)
    sizes = {tuple(leaf.shape[:1]) for leaf in example if isinstance(leaf, Tensor)}
    free = len(sizes) == 1 and all(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in example)

    def noise(like: Tensor) -> Tensor:
        if not like.is_floating_point():
            return like
        return torch.randn((batch, *like.shape[1:]) if free and like.dim() else like.shape, generator=generator, dtype=like.dtype)

    made: tuple[Any, ...] = map_tensors(example, noise)
    return made


def fitting_inputs(graph: Graph, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """`inputs`, or noise of the example's own shapes where the graph cannot run on them: it may hold its batch as a number."""
    return inputs if graph.runs_on(*inputs) else own_inputs(graph)


def own_inputs(graph: Graph) -> tuple[Any, ...]:
    """Noise of the example's own shapes."""
    return chain_inputs(graph.example_inputs, batch=_batch(graph))


def takes_any_batch(graph: Graph) -> bool:
    """Whether the graph runs with one sample more than its example has."""
    return graph.runs_on(*chain_inputs(graph.example_inputs, batch=_batch(graph) + 1))


def _batch(graph: Graph) -> int:
    return next((leaf.shape[0] for leaf in graph.example_inputs if isinstance(leaf, Tensor) and leaf.dim()), 1)
