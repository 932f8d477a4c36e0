"""Take out operators that return what they are given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from irtool.ir.graph import G, Graph, Node, Value
from irtool.ops.spec import spec_of
from irtool.passmanager import Pass, Rewritten, register


@register
@dataclass(frozen=True)
class RemoveIdentity(Pass):
    """Remove operators that return their input as it is: Identity, a transpose that moves nothing, a cast to the same type,
    a concatenation of one value, padding by nothing, a clip without bounds, and dropout where nothing is trained.

    Given:  %a = Relu(%x); %b = Transpose(%a) {perm=[0,1,2,3]}; %c = Conv(%b, ...)
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
            return not mask and not node.attrs.get("training_mode") and (self.dropout or not graph.trainable)
        # Attributes are those seen with the example: where the program computes them, they may be others for other inputs.
        return spec_of(node.op).returns_input(node) and graph.is_constant(node, {node.input})


_COPIES = frozenset({"Concat", "Pad"})
"""Operators that give torch a tensor of its own, which an operator that writes in place may need."""
