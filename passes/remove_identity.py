"""Take out operators that return what they are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from irtool.hosts.torch.attributes import canonical
from irtool.ir.graph import G, Graph, Node, Value
from irtool.passmanager import Pass, Rewritten, register


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

    def rewrite(self, graph: G) -> Rewritten[G]:
        """Remove them, but for those that give an input, a constant or another output one more name as an output."""
        new = graph.clone()
        copies_matter = bool(new.writers())
        stand_ins: dict[Value, Value] = {}
        named = set(new.outputs)
        for node in [node for node in new.nodes if self._returns_input(new, node)]:  # all of them, before the host is edited
            if copies_matter and node.op in _COPIES:
                continue
            source = stand_ins.get(node.input, node.input)
            if node.output in new.outputs:
                if source.producer is None or source.producer.op in ("Input", "Constant") or source in named:
                    continue
                named.add(source)
            stand_ins[node.output] = source
            new.bypass(node)
        if not stand_ins:
            return Rewritten(graph)
        new.commit()
        return Rewritten(new, (f"{len(stand_ins)} operators removed that return their input",))

    def _returns_input(self, graph: Graph, node: Node) -> bool:
        if node.op == "Dropout":
            mask = any(output.uses for output in node.outputs[1:])
            return not mask and not _always_drops(node) and (self.dropout or not graph.trainable)
        rule = _RULES.get(node.op)
        # Attributes are those seen with the example: where the program computes them, they may be others for other inputs.
        return rule is not None and rule(node) and graph.is_constant(node, {node.input})


def _always_drops(node: Node) -> bool:
    """Whether dropout does not follow the mode: a function of torch does what its flag says, and drops if it has none."""
    return bool(next((node.attrs[name] for name in ("training", "train", "arg2") if name in node.attrs), "." in node.callee))


def _moves_nothing(node: Node) -> bool:
    order = canonical(node).get("order")
    return order is not None and list(order) == sorted(order)


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
    "Transpose": _moves_nothing,
    "Cast": lambda node: node.callee == "Cast" and node.input.dtype is not None and node.input.dtype == node.output.dtype,
    "Concat": lambda node: len(node.inputs) == 1 and node.input.sizes == node.output.sizes,
    "Pad": lambda node: bool(node.attrs.get("pad")) and not any(node.attrs["pad"]),
    "Slice": _is_full,
    "Clip": lambda node: not canonical(node),  # bounds that are left out may still be some: those of ReLU6, say
}
