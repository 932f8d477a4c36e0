"""Images that nobody has: noise, and a graph whose batch norms take it for what they were trained on.

A batch norm keeps the mean and variance of what it read in training. Where each is given those of the noise instead, its output has on the
noise the moments that it has on the real images: mean beta and variance gamma^2. What the statistics do not say, how
channels and positions vary together, the weights decide, which are the trained ones. So layers can be refitted in that graph, and what is
found holds in the graph itself, with its own statistics. That covariances can be modelled by weights is known from UDFC (Bai et al., 2023,
"Unified Data-Free Compression"), Neuron Merging (Kim et al., 2020) and model folding (Wang et al., 2025), in closed form and layer by
layer; here they are sampled, so that whatever lies between layers counts.

Half of the noise has the power spectrum of photographs, amplitude over frequency (Field, 1987), and half their edges: shapes of all sizes that
hide one another ("dead leaves": Lee, Mumford and Huang, 2001; that nets learn from both: Baradad et al., 2021). Colours mostly vary together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from irtool.analysis.cost import cost
from irtool.errors import DataError
from irtool.ir.frontier import Batch, Stop
from irtool.ir.graph import G, Graph, Node
from irtool.ops.batch_norm import not_fixed
from irtool.progress import Progress, Status, silent
from irtool.pruning.reconstruct.images import image_batches, live_bytes, split_to_fit

IMAGES = 256
"""Number of noise images for a small net."""
FEWEST, WORK = 32, 50e9
"""Least number of noise images for a large net, and the multiply-accumulates that bound it."""
SHARED = 0.9
"""Share of the variance of the input's channels that is common to all of them, as in photographs."""
LEAVES = 40
"""Shapes in an image."""
REMEDY = "Give images (no labels are needed), or use prune, which absorbs what is constant."


def norms_of(graph: Graph) -> list[Node]:
    """The batch norms whose statistics are stored, each read by one alone, in the order in which they run."""
    found = [node for node in graph.nodes if node.op == "BatchNormalization" and not_fixed(node) is None]
    return [node for node in found if all(len(node.operands[role].uses) == 1 for role in ("running_mean", "running_var"))]


def can_stand_in(graph: Graph) -> bool:
    """Whether noise can take the place of images: there are batch norms, the one input is an image or a row of numbers, and all of it runs."""
    if graph.foreign:
        return False
    inputs = [value for value in graph.inputs if value.shape is not None]
    return bool(norms_of(graph)) and len(inputs) == len(graph.example_inputs) == 1 and _is_noisy(graph.example_inputs[0])


def _is_noisy(example: object) -> bool:
    return isinstance(example, Tensor) and example.is_floating_point() and example.dim() >= 2


def noise_batches(graph: Graph, count: int, chunk: int, seed: int = 0, memory: int = 1 << 30) -> list[Batch]:
    """Noise in the place of images, as arguments of the graph.

    Args:
        graph: says of which sizes.
        count: at most so many images.
        chunk: how many run together.
        seed: of the noise.
        memory: bytes that values of all images at one place of the net may take.

    Raises:
        DataError: noise cannot take the place of images in this graph.
    """
    if not can_stand_in(graph):
        why = "there are no batch norms whose statistics could tell" if not norms_of(graph) else "noise is no input of this model"
        raise DataError(f"no images, and {why}", where="images", remedy=REMEDY)
    example = graph.example_inputs[0]
    count = max(1, min(count, memory // max(live_bytes(graph), 1), max(FEWEST, int(WORK / max(cost(graph).macs, 1)))))
    made = noise((count, *example.shape[1:]), seed).to(example.device, example.dtype)
    return split_to_fit(graph, image_batches(graph, made, count, chunk))


def noise(shape: Sequence[int], seed: int = 0) -> Tensor:
    """Noise (N, C, ...) of variance 1, float32: with two axes behind the channels both kinds in random order, else the Gaussian one alone."""
    generator = torch.Generator().manual_seed(seed)
    if len(shape) != 4:
        return gaussian_noise(shape, generator)
    half = shape[0] // 2
    both = torch.cat([gaussian_noise((shape[0] - half, *shape[1:]), generator), leaves((half, *shape[1:]), generator)])
    return both[torch.randperm(shape[0], generator=generator)]


def gaussian_noise(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Gaussian noise (N, C, ...) whose amplitude falls with spatial frequency."""
    white = _colours((shape[0], *shape[1:]), generator)
    axes = tuple(range(2, len(shape)))
    if not axes:
        return white
    squares = torch.zeros(tuple(shape[2:]))
    for axis, size in enumerate(shape[2:]):
        squares = squares + torch.fft.fftfreq(size).square().reshape([-1 if at == axis else 1 for at in range(len(axes))])
    amplitude = squares.sqrt().clamp_min(1 / max(shape[2:])).reciprocal()
    found = torch.fft.ifftn(torch.fft.fftn(white, dim=axes) * amplitude, dim=axes).real
    return found / found.std().clamp_min(1e-12)


def leaves(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Discs and boxes (N, C, H, W) of random places, sizes and colours, each in front of those before it."""
    count, _, height, width = shape
    found = torch.zeros(tuple(shape))
    down, across = torch.arange(height)[None, :, None], torch.arange(width)[None, None]
    for _ in range(LEAVES):
        drawn = torch.rand(4, count, 1, 1, generator=generator)
        radius = max(height, width) / 2 * (drawn[0] + 1 / max(height, width)).clamp(max=1) ** 1.5
        away = (down - drawn[1] * height).abs(), (across - drawn[2] * width).abs()
        disc, box = away[0].square() + away[1].square() < radius.square(), (away[0] < 0.7 * radius) & (away[1] < radius)
        inside = torch.where(drawn[3] < 0.5, disc, box)
        found = torch.where(inside[:, None], _colours((count, shape[1], 1, 1), generator), found)
    return found / found.std().clamp_min(1e-12)


def _colours(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Independent normal values, but that channels vary together."""
    common, own = torch.randn(shape[0], 1, *shape[2:], generator=generator), torch.randn(tuple(shape), generator=generator)
    return SHARED**0.5 * common + (1 - SHARED) ** 0.5 * own if shape[1] > 1 else own


@torch.no_grad()
def with_statistics_of(graph: G, batches: Sequence[Batch], progress: Progress = silent) -> G:
    """Return a copy of a graph whose batch norms have the statistics of what they read on these batches, one after the other.

    Raises:
        DataError: a batch norm reads values that are not finite.
    """
    new = graph.clone()
    norms = norms_of(new)
    frontier = new.side_by_side(batches, stops := [Stop(node, [(node.input, node)]) for node in norms])
    with frontier.running():
        for number, (node, stop) in enumerate(zip(norms, stops, strict=True)):
            progress(Status("measure noise", number, len(norms)))
            if not frontier.usable(stop):
                continue
            frontier.advance(node)
            parts = [frontier.value(batch, node.input).double() for batch in range(len(batches))]
            read = torch.cat([part.transpose(0, 1).flatten(1) for part in parts], 1)
            var, mean = torch.var_mean(read, 1, correction=0)
            if not bool(torch.isfinite(var).all()):
                raise DataError("noise gives values that are not finite here", where=node.location, remedy=REMEDY)
            for role, data in (("running_mean", mean), ("running_var", var)):
                value = node.operands[role]
                assert value.data is not None
                new.set_param(value.name, data.to(value.data))
    progress(Status("measure noise", len(norms), len(norms)))
    return new


def statistics(graph: Graph) -> dict[str, Tensor]:
    """The statistics of these batch norms by name."""
    found = [node.operands[role] for node in norms_of(graph) for role in ("running_mean", "running_var")]
    return {value.name: value.data for value in found if value.data is not None}
