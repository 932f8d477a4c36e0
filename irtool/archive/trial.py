"""Trying out a program that came from a file, so that a damaged one fails when it is loaded and not when it is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from irtool.ir.fx_reader import Reader
from irtool.ir.fx_targets import Spec


class Trial(Reader):
    """A reading that knows no operator and no formula for a shape, so that torch runs each node once and checks all its arguments.

    Nodes run on the meta device, where there is nothing to compute; on zeros where an operator refuses that.

    Raises:
        GraphError: a node that cannot run; the text names it.
    """

    def __init__(self, module: fx.GraphModule, example_inputs: Sequence[Any]) -> None:
        super().__init__(module, example_inputs, None)

    def _module_spec(self, module: nn.Module) -> Spec | None:
        return None

    def _function(self, node: fx.Node) -> tuple[Spec | None, str]:
        return None, ""
