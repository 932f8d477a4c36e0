"""A saved model at other sizes of its inputs than those that it was saved with."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from irtool.errors import IrtoolError, OptionError
from irtool.hosts.torch.graph import FxGraph

_FREE = "symbolic"
"""The tracer that follows no sizes; the others may have decided by them."""


def at_sizes(graph: FxGraph, shapes: Sequence[Sequence[int | None]], where: str) -> FxGraph:
    """A saved model's graph, read at the sizes that are asked for.

    Args:
        graph: as it was saved.
        shapes: of its inputs; None where an axis may stay as it was saved, and inputs that are left out stay, too. Nothing: all stay.
        where: the model, for errors.

    Raises:
        OptionError: the program does not take these sizes.
    """
    own = graph.example_inputs
    known = [tuple(leaf.shape) if isinstance(leaf, torch.Tensor) else () for leaf in own]
    if shapes and (len(shapes) > len(own) or (len(shapes) < len(own) and None not in shapes[0])):
        raise OptionError(
            f"{len(shapes)} sizes, and {len(own)} of the model's inputs",
            where=where,
            remedy="Give --input once for each input, or not at all.",
        )
    asked = [*map(tuple, shapes), *known[len(shapes) :]]
    wanted = [_filled(sizes, saved) for sizes, saved in zip(asked, known, strict=True)]
    if wanted == known:
        return graph
    text, saved_for = (" and ".join("x".join(map(str, sizes)) for sizes in some) for some in (wanted, known))
    other_images = any(sizes[1:] != saved[1:] for sizes, saved in zip(wanted, known, strict=True))
    refused = f"saved for inputs of {saved_for}, which its program has written into it; {text} is asked for"
    remedy = "Leave --input out, give images of that size (--image-size), or trace the model at the other size and save it again."
    if (graph.tracer != _FREE and other_images) or not all(isinstance(leaf, torch.Tensor) for leaf in own):
        raise OptionError(refused, where=where, remedy=remedy)
    examples = [
        leaf if sizes == saved else torch.zeros(sizes, dtype=leaf.dtype, device=leaf.device)
        for leaf, sizes, saved in zip(own, wanted, known, strict=True)
    ]
    try:
        return FxGraph(graph.shared().module, examples, tracer=graph.tracer, history=graph.history)
    except (IrtoolError, RuntimeError, ValueError, TypeError, IndexError) as error:
        raise OptionError(refused, where=where, remedy=remedy) from error


def _filled(sizes: Sequence[int | None], saved: Sequence[int]) -> tuple[int, ...]:
    """Sizes with those that are left open as they were saved; 1 where there is no such axis."""
    own = saved if len(saved) == len(sizes) else [1] * len(sizes)
    return tuple(was if size is None else size for size, was in zip(sizes, own, strict=True))
