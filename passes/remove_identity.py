"""Take out operators that return what they are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from irtool.ir.graph import G, Node, Value
from irtool.passmanager import Pass, PassResult, register


@register
@dataclass(frozen=True)
class RemoveIdentity(Pass):
    """Remove operators that return their input as it is: Identity, a transpose that moves nothing, a cast to the same type,
    a concatenation of one value, padding by nothing, a clip without bounds, and dropout where nothing is trained.

    Given:  %a = Relu(%x); %b = Transpose(%a) {dims=(0,1,2,3)}; %c = Conv(%b, ...)
    Result: %a = Relu(%x); %c = Conv(%a, ...)

    Attributes:
        dropout: also remove dropout from a graph that can be trained; it is the identity in eval mode only.
    """

    name: ClassVar[str] = "remove_identity"

    dropout: bool = False

    def __call__(self, graph: G) -> PassResult[G]:
        """Remove them, but for those that give an input, a constant or another output one more name as an output."""
        new = graph.clone()
        copies_matter = any(not new.is_pure(node) for node in new.nodes if node.op not in ("Input", "Output", "Constant"))
        stand_ins: dict[Value, Value] = {}
        named = set(new.outputs)
        for node in new.nodes:
            if not self._returns_input(node, new.trainable) or (copies_matter and node.op in _COPIES):
                continue
            source = stand_ins.get(node.input, node.input)
            if node.output in new.outputs:
                if source.producer is None or source.producer.op in ("Input", "Constant") or source in named:
                    continue
                named.add(source)
            stand_ins[node.output] = source
            new.bypass(node)
        if not stand_ins:
            return PassResult(graph, False)
        new.tidied()
        new.history = (*graph.history, {"step": self.name, "dropout": self.dropout})
        return PassResult(new, True, (f"{len(stand_ins)} operators removed that return their input",))

    def _returns_input(self, node: Node, trainable: bool) -> bool:
        if node.op == "Dropout":
            mask = any(output.uses for output in node.outputs[1:])
            return not mask and not node.attrs.get("training") and (self.dropout or not trainable)
        rule = _RULES.get(node.op)
        return rule is not None and rule(node)


def _is_full(node: Node) -> bool:
    """A slice from the first entry to beyond the last of any axis."""
    starts, ends, steps = (node.attrs.get(name) for name in ("starts", "ends", "steps"))
    whole = starts is not None and ends is not None and not any(starts) and all(end >= _BEYOND for end in ends)
    return whole and all(step == 1 for step in steps or ())


_BEYOND = 2**31 - 1
"""What exporters write for "to the end"."""
_COPIES = frozenset({"Concat", "Pad"})
"""Operators that give torch a tensor of its own, which an operator that writes in place may need."""
_RULES: Mapping[str, Callable[[Node], bool]] = {
    # Not clone and contiguous, which matter to what works in place or by strides, nor detach, which stops gradients.
    "Identity": lambda node: node.callee == "Identity",
    "Transpose": lambda node: node.attrs.get("dims") is not None and list(node.attrs["dims"]) == list(range(len(node.input.sizes))),
    "Cast": lambda node: node.callee == "Cast" and node.input.dtype is not None and node.input.dtype == node.output.dtype,
    "Concat": lambda node: len(node.inputs) == 1 and node.input.sizes == node.output.sizes,
    "Pad": lambda node: bool(node.attrs.get("pad")) and not any(node.attrs["pad"]),
    "Slice": _is_full,
    "Clip": lambda node: len(node.inputs) == 1 and node.attrs.get("min") is None and node.attrs.get("max") is None and not node.attrs,
}
