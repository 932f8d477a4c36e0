"""Sizes that hang on what an image shows (`nonzero`, a boolean index, boxes that are kept): no number of the example's stands for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from irtool.errors import TraceError


class Counted:
    """Nodes whose sizes, or whose numbers made of such sizes, hang on the values of tensors."""

    def __init__(self) -> None:
        self._nodes: set[fx.Node] = set()

    @contextmanager
    def watched(self, node: fx.Node) -> Iterator[None]:
        """While a node is computed, note whether one of its operators gives as much as it finds."""
        with _Watch() as watch:
            yield
        if watch.counts:
            self._nodes.add(node)

    def follow(self, node: fx.Node, value: Any) -> None:
        """Note a node that takes what is noted. A single number that is computed of many has no size to take."""
        leaves = pytree.tree_leaves(value)
        single = leaves and all(isinstance(leaf, torch.Tensor) and leaf.dim() == 0 for leaf in leaves)
        if not single and any(source in self._nodes for source in node.all_input_nodes):
            self._nodes.add(node)

    def refuse(self, node: fx.Node) -> None:
        """Let nothing be decided by such a size.

        Raises:
            TraceError: the node is noted.
        """
        if node in self._nodes:
            raise TraceError(f"how many {node.name} gives hangs on the image", remedy="Compute it outside of forward.")


class _Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        # torch tells it of its own operators; one of somebody else's, which has no form without numbers, may do anything
        self.counts |= torch.Tag.dynamic_output_shape in func.tags or func.namespace != "aten"
        return func(*args, **(kwargs or {}))
