"""Take out what nobody reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from irtool.ir.graph import G
from irtool.passmanager import Pass, PassResult, register


@register
@dataclass(frozen=True)
class DeadCode(Pass):
    """Remove operators whose results nobody reads. What writes into its inputs, or may do more than compute, stays.

    Inputs stay: a caller passes them. Weights that only removed operators read go with them.

    Given:  %a = Conv(%x, ...); %b = Conv(%x, ...); output %a
    Result: %a = Conv(%x, ...); output %a
    """

    name: ClassVar[str] = "dead_code"

    def __call__(self, graph: G) -> PassResult[G]:
        """Remove them."""
        new = graph.clone()
        dead = new.drop_dead()
        if not dead:
            return PassResult(graph, False)
        new.tidied()
        new.history = (*graph.history, {"step": self.name})
        return PassResult(new, True, (f"{len(dead)} dead operators removed: {', '.join(dead)}",))
