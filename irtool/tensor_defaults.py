"""torch's defaults for new tensors: they are the caller's choice, and no part of irtool may depend on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


@contextmanager
def plain_tensors(*, unless: str = "cpu") -> Iterator[None]:
    """Make tensors on the CPU, and such that may be written to and learned with, in a block, or a function as a decorator.

    Without it `torch.set_default_device("meta")`, or "cuda", is where labels and random numbers would lie, and under
    `torch.inference_mode` the weights of a graph could be changed by no training.

    Args:
        unless: a kind of default device that stays. Where it stays nothing is set: a mode of torch's costs time in every call.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))  # which turns gradients on, too
            stack.enter_context(torch.no_grad())
        if torch.get_default_device().type != unless:
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def real_tensors() -> Iterator[None]:
    """A block that runs a user's own code: of the default device only "meta", on which nothing is computed, is set aside."""
    with plain_tensors(unless="cpu" if (kind := torch.get_default_device().type) == "meta" else kind):
        yield


def seeded(run: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call with random numbers from one seed: operators that draw as many in both runs draw the same ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return run(*args, **options)
