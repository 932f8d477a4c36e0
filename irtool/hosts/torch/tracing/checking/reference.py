"""A model's own outputs, which a program that was traced from it is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx, nn

from irtool.hosts.torch.tracing.checking.compare import equal, observed
from irtool.hosts.torch.tracing.state.sandbox import TraceNotes
from irtool.nests import tensors_in


class Reference:
    """A model on an example and on what is made from it at other sizes, run once at each size.

    Args:
        model: the model.
        inputs: the example.
        decided: for modules that decide by `self.training`, by path, the mode in which they are run.

    Attributes:
        asides: what the runs did to the model, which is taken back each time.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[Any], decided: Mapping[str, bool]) -> None:
        self.model, self.inputs, self.decided, self.asides = model, tuple(inputs), decided, TraceNotes()
        self._outputs: dict[tuple[Any, ...], Any] = {}

    def outputs(self, inputs: Sequence[Any]) -> Any:
        """Run the model on the example, or on inputs whose numbers follow from it and their sizes; None if it raises there."""
        sizes = sizes_of(inputs)
        if sizes not in self._outputs:
            self._outputs[sizes] = observed(self.model, inputs, self.decided, asides=self.asides)
        return self._outputs[sizes]

    def agrees(self, module: fx.GraphModule, inputs: Sequence[Any]) -> bool:
        """Whether a program gives the model's outputs on inputs of one size, or the model does not run on them."""
        expected = self.outputs(inputs)
        return expected is None or equal(self.model, module, inputs, self.decided, expected, observed(module, inputs))


def sizes_of(inputs: Sequence[Any]) -> tuple[Any, ...]:
    """Return the shapes of the tensors among inputs, in their order."""
    return tuple(tuple(tensor.shape) for tensor in tensors_in(tuple(inputs)))
